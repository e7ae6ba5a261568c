"""`virnucpro store status`, `verify`, `compact`, `drop`, `import` and `export`."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from virnucpro.cli.options import DIRECTORY, FILE, OrderedGroup, step
from virnucpro.errors import DataError

if TYPE_CHECKING:
    from virnucpro.store.maintenance import Problem, RequestStatus

__all__ = ["store"]

logger = logging.getLogger(__name__)

_store_argument = click.argument("store", type=DIRECTORY)


@click.group(cls=OrderedGroup)
def store() -> None:
    """Look after a store of embeddings.

    In a store, each protein is computed once. STORE is its folder, as the configuration names it.
    """


@store.command("status")
@_store_argument
@click.option("--json", "as_json", is_flag=True, help="For machines; sizes in bytes.")
def store_status(store: Path, as_json: bool) -> None:
    """List what a store has, by request.

    The list goes to standard output.
    """
    from virnucpro.store.maintenance import status

    found, problems = status(store)
    _warn(problems)
    if as_json:
        entries = [{"id": one.request.id, **asdict(one)} for one in found]
        click.echo(json.dumps(entries, indent=2))
    else:
        click.echo(_status_table(found))


def _status_table(found: list[RequestStatus]) -> str:
    """Lay requests out for people, sizes in GB."""
    line = "{:<12} {:>13} {:>9} {:>10}  {}".format
    rows = [line("request", "rows", "segments", "GB", "computed with")]
    for one in found:
        request = one.request
        facts = (
            f"{request.model}, layers {', '.join(map(str, request.layers))}, {request.pooling}, "
            f"{request.compute_dtype} to {request.output_dtype}, up to "
            f"{request.max_sequence_length} residues ({request.long_sequences}), "
            f"{request.tokens_per_step} tokens a step on {request.device}, torch {request.torch}"
        )
        size = f"{one.bytes / 1e9:,.2f}"
        rows.append(line(request.id[:12], f"{one.rows:,}", f"{one.segments:,}", size, facts))
    return "\n".join(rows)


@store.command("verify")
@_store_argument
@click.option("--remove", is_flag=True, help="Remove what is damaged.")
@step("store verify", "whole", "damaged")
def store_verify(store: Path, remove: bool) -> Any:
    """Check every byte of a store; what is damaged is named, and ends this with status 1."""
    from virnucpro.store.maintenance import verify

    whole, problems = verify(store, remove=remove)
    _warn(problems)
    logger.info("%s: %d segments are whole", store, whole)
    if problems and not remove:
        raise DataError(
            f"{len(problems)} segments cannot be used; they are named above",
            path=store,
            hint="--remove takes away those that are damaged",
        )
    return {"whole": whole, "damaged": len(problems)}


@store.command("compact")
@_store_argument
@step("store compact", "merged", "written", "rows", "duplicates")
def store_compact(store: Path) -> Any:
    """Merge small segments into large ones; others may read and write meanwhile."""
    from virnucpro.store.compaction import compact

    return compact(store)


@store.command("drop")
@_store_argument
@click.argument("request")
@step("store drop", "segments")
def store_drop(store: Path, request: str) -> Any:
    """Remove all rows of a REQUEST, given by its id in `status`, or how that begins."""
    from virnucpro.store.maintenance import drop

    return {"segments": drop(store, request)}


@store.command("import")
@_store_argument
@click.argument("h5ad", type=FILE)
@step("store import", "sequences")
def store_import(store: Path, h5ad: Path) -> Any:
    """Add the rows of an embeddings.h5ad, H5AD, to a store."""
    from virnucpro.merge.store_import import import_h5ad

    return {"sequences": import_h5ad(h5ad, store)}


@store.command("export")
@_store_argument
@click.argument("request")
@click.argument("fasta", nargs=-1, required=True, type=FILE)
@click.option("--output", required=True, type=FILE, help="AnnData file to write (.h5ad).")
@click.option("--quarantine", required=True, type=FILE, help="Records left out, and why (TSV).")
@click.option("--sample", default="export", show_default=True, help="Name of the sample.")
@click.option("--ids", type=FILE, help="Take these records alone: a file with an id a line.")
@step("store export", "read", "embedded", "quarantined")
def store_export(
    store: Path, request: str, fasta: tuple[Path, ...], ids: Path | None, **options: Any
) -> Any:
    """Write embeddings.h5ad of what a store has of FASTA files, without computing.

    REQUEST is an id in `status`, or how it begins. Records that the store does not know are
    quarantined.
    """
    from virnucpro.merge.store_export import export_h5ad
    from virnucpro.store.maintenance import read_request
    from virnucpro.store.store import Store

    found = read_request(store, request)
    chosen = None
    if ids is not None:
        chosen = [line.strip() for line in ids.read_text().split("\n") if line.strip()]
    return export_h5ad(Store([store]), found, fasta, ids=chosen, **options)


def _warn(problems: list[Problem]) -> None:
    for problem in problems:
        logger.warning("%s: %s", problem.path, problem.reason)
