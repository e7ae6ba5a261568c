"""`virnucpro merge`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from virnucpro import formats
from virnucpro.cli.options import (
    FILE,
    embeddings_option,
    format_option,
    plans_option,
    records_option,
    shards_option,
    step,
)

__all__ = ["merge"]


def _exports(
    _context: click.Context, _parameter: click.Parameter, values: tuple[str, ...]
) -> dict[str, Path]:
    """Parse ``--export FORMAT=FILE``."""
    exports = {}
    for value in values:
        name, equals, path = value.partition("=")
        if not (name and equals and path):
            raise click.BadParameter(f"{value!r} is not FORMAT=FILE")
        exports[name] = Path(path)
    return exports


@click.command()
@click.option(
    "--request", type=FILE, help="Request that `withdraw` wrote; embeddings.h5ad will carry its id."
)
@shards_option
@records_option
@plans_option
@embeddings_option
@click.option("--output", required=True, type=FILE, help="AnnData file to write (.h5ad).")
@click.option("--quarantine", required=True, type=FILE, help="Records left out, and why (TSV).")
@click.option(
    "--residues",
    type=FILE,
    help="Residues to write (HDF5), of shards embedded with --pooling=none.",
)
@click.option(
    "--export",
    "exports",
    multiple=True,
    callback=_exports,
    metavar="FORMAT=FILE",
    help="Also write parquet, npy, uniprot-h5 or fair-esm; may be given several times.",
)
@click.option(
    "--genes",
    multiple=True,
    type=FILE,
    metavar="PREFIX",
    help="What `genes` wrote for each input of `split`, in their order.",
)
@click.option("--contigs", type=FILE, help="Table of all contigs to write (TSV); needs --genes.")
@click.option(
    "--contig-means",
    type=FILE,
    help="AnnData file of the mean over each contig's genes to write; needs --genes.",
)
@format_option("merged embeddings", formats.MERGE_FORMAT)
@step("merge", "read", "embedded", "quarantined", "truncated", "normalised")
def merge(**options: Any) -> Any:
    """Put embeddings into input order, and account for every record."""
    from virnucpro.merge.sample import merge_sample

    return merge_sample(**options)
