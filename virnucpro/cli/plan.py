"""`virnucpro plan`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from virnucpro import formats
from virnucpro.cli.options import (
    FILE,
    cache_dir_option,
    format_option,
    max_sequence_length_option,
    planned_tokens_option,
    shard_argument,
    step,
)

__all__ = ["plan"]


@click.command()
@shard_argument
@click.option("--plan", "plan_path", required=True, type=FILE, help="Plan to write (Parquet).")
@click.option(
    "--report", "report_path", required=True, type=FILE, help="Efficiency report to write (JSON)."
)
@planned_tokens_option("--token-budget", help="Tokens per batch.")
@max_sequence_length_option
@click.option(
    "--long-sequences",
    type=click.Choice(["truncate", "window"]),
    default="truncate",
    show_default=True,
    help="Longer sequences: keep the N-terminal part, or compute all of it in windows.",
)
@click.option(
    "--window-overlap",
    type=click.IntRange(min=0),
    default=256,
    show_default=True,
    help="Minimum overlap of neighbouring windows, in residues.",
)
@cache_dir_option(help="Keeps plans, addressed by the content of their shards.")
@format_option("plan", formats.PLAN_FORMAT)
@step("plan", "items", "batches", "content_hash")
def plan(
    shard: Path, plan_path: Path, report_path: Path, cache_dir: Path | None, **parameters: Any
) -> Any:
    """Pack a shard's sequences into batches (First-Fit Decreasing)."""
    from virnucpro.plan.build import plan_shard
    from virnucpro.plan.parameters import PlanParameters

    options = PlanParameters(**parameters)
    return plan_shard(shard, plan_path, report_path, options, cache_dir=cache_dir).packing
