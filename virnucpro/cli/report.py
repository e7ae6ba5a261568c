"""`virnucpro report plans`, `run` and `overview`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from virnucpro import formats
from virnucpro.cli.options import (
    DIRECTORY,
    FILE,
    OrderedGroup,
    cache_dir_option,
    dtype_option,
    embeddings_option,
    format_option,
    layers_option,
    output_dtype_option,
    plans_option,
    pooling_option,
    pseudo_perplexity_option,
    records_option,
    shards_option,
    step,
    store_option,
)

__all__ = ["report"]

_json_option = click.option(
    "--json", "json_path", required=True, type=FILE, help="Report to write (JSON)."
)
_tsv_option = click.option("--tsv", "tsv_path", required=True, type=FILE, help="Table to write.")
_pages_option = click.option(
    "--report", "report_dir", required=True, type=DIRECTORY, help="Pages and figures to write."
)
_rates_option = cache_dir_option(help="Where measured rates are kept.")
_report_format_option = format_option("report", formats.REPORT_FORMAT)


@click.group(cls=OrderedGroup)
def report() -> None:
    """Report what was planned and what was achieved."""


@report.command("plans")
@shards_option
@plans_option
@_json_option
@_tsv_option
@click.option("--records", type=FILE, help="records.parquet, to count what duplicates save.")
@_rates_option
@click.option("--model", help="Name of the model: adds GPU hours, wall time and disk space.")
@layers_option(help="Layers that will be kept.")
@pooling_option
@output_dtype_option(help="What the embeddings will be written in.")
@store_option(help="Also say what these stores have already.")
@pseudo_perplexity_option
@dtype_option
@_report_format_option
@step("report plans", "sample", "totals")
def report_plans(
    model: str | None,
    layers: tuple[int, ...],
    pooling: str,
    output_dtype: str,
    store: tuple[Path, ...],
    pseudo_perplexity: str,
    dtype: str,
    **options: Any,
) -> Any:
    """Sum up all plans: efficiency and estimated cost, before a GPU is used."""
    from virnucpro.model.config import KNOWN_MODELS
    from virnucpro.report.cost import Workload
    from virnucpro.report.known import StoreLookup
    from virnucpro.report.plans import plans_report
    from virnucpro.store.store import Store

    workload = lookup = None
    if model is not None:
        known = KNOWN_MODELS.get(model)
        dim = known.dim if known else None
        workload = Workload(model, dim, len(layers), output_dtype, residues=pooling == "none")
        if store:
            lookup = StoreLookup(
                Store(store),
                model=model,
                layers=layers,
                last_layer=known.layers if known else None,
                pooling=pooling,
                pseudo_perplexity=pseudo_perplexity,
                compute_dtype=None if dtype == "auto" else dtype,
                output_dtype=output_dtype,
            )
    return plans_report(**options, workload=workload, lookup=lookup).as_json()


@report.command("run")
@shards_option
@plans_option
@embeddings_option
@records_option
@click.option("--quarantine", required=True, type=FILE, help="Final quarantine table (TSV).")
@_json_option
@_tsv_option
@_pages_option
@_rates_option
@_report_format_option
@step("report run", "sample", "ledger", "measured")
def report_run(**options: Any) -> Any:
    """Compare plan and run, with figures."""
    from virnucpro.report.run import run_report

    return run_report(**options).as_json()


@report.command("overview")
@click.argument("samples", nargs=-1, required=True)
@click.option("--results", required=True, type=DIRECTORY, help="Holds a folder for each sample.")
@_pages_option
@_report_format_option
@step("report overview")
def report_overview(samples: tuple[str, ...], results: Path, report_dir: Path) -> None:
    """Put all SAMPLES into one table, and map their embeddings.

    The maps show principal components, and UMAP where umap-learn is installed.
    """
    from virnucpro.report.overview import overview

    overview(results, samples, report_dir=report_dir)
