"""`virnucpro budget`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from virnucpro import formats
from virnucpro.cli.options import (
    FILE,
    cache_dir_option,
    device_option,
    dtype_option,
    format_option,
    layers_option,
    max_sequence_length_option,
    output_dtype_option,
    planned_tokens_option,
    pooling_option,
    pseudo_perplexity_option,
    step,
    weights_option,
)

__all__ = ["budget"]


@click.command()
@weights_option
@click.option("--receipt", required=True, type=FILE, help="Receipt of the weights.")
@click.option("--out", required=True, type=FILE, help="Token budget to write (JSON).")
@device_option
@dtype_option
@planned_tokens_option("--plan-token-budget", help="Tokens per planned batch.")
@max_sequence_length_option
@layers_option(help="A layer that jobs will pool; may be given several times.")
@pooling_option
@pseudo_perplexity_option
@output_dtype_option(help="What the arrays will be written in.")
@cache_dir_option(help="Keeps measured rates and compiled kernels.")
@format_option("token budget", formats.BUDGET_FORMAT)
@step("budget", "device", "dtype", "backend", "tokens_per_step")
def budget(weights: Path, receipt: Path, out: Path, cache_dir: Path | None, **options: Any) -> Any:
    """Measure how many tokens a step should compute on this device."""
    from virnucpro.cli.device import claim_gpu, keep_kernels

    keep_kernels(cache_dir)
    options["device"], sha256 = claim_gpu(options["device"], weights)
    from virnucpro.embed.measure import write_measured_budget

    return write_measured_budget(
        weights, receipt, out, cache_dir=cache_dir, weights_sha256=sha256, **options
    )
