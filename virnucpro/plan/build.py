"""The step `plan`: from a shard to its plan and its efficiency report."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from virnucpro.files import write_bytes
from virnucpro.plan.cache import CacheEntry, PlannedShard
from virnucpro.plan.items import key_array
from virnucpro.plan.parameters import PlanParameters
from virnucpro.plan.plan import make_plan, plan_bytes
from virnucpro.plan.report import PlanReport, efficiency_report, write_report
from virnucpro.sequences.shards import read_shard

__all__ = ["plan_shard"]

logger = logging.getLogger(__name__)


def plan_shard(
    shard: Path,
    plan_path: Path,
    report_path: Path,
    parameters: PlanParameters,
    *,
    cache_dir: Path | None = None,
) -> PlanReport:
    """Plan a shard, or take its plan from the cache, and write plan and report.

    Args:
        shard: the shard FASTA.
        plan_path: the Parquet file to write.
        report_path: the JSON report to write.
        parameters: how to plan.
        cache_dir: the cache folder; None for no cache.

    Returns:
        The report.

    Raises:
        InputError: the parameters do not go together.
        DataError: the shard is missing; or it is damaged and had to be read.
        OSError: a file cannot be written.
    """
    parameters.check()
    entry = None if cache_dir is None else CacheEntry(cache_dir, shard, parameters)
    planned = entry.get() if entry else None
    if entry:
        logger.info("plan cache %s %s", "hit" if planned else "miss", entry.address)
    if planned is None:
        planned = _plan(shard, parameters)
        if entry:
            entry.put(planned)
    write_bytes(plan_path, planned.content)
    write_report(report_path, planned.report)
    _log(planned.report)
    return planned.report


def _plan(shard: Path, parameters: PlanParameters) -> PlannedShard:
    sequences = read_shard(shard)
    lengths = np.fromiter(map(len, sequences.residues), np.int64, len(sequences))
    plan = make_plan(key_array(sequences.keys), lengths, parameters)
    return PlannedShard(plan_bytes(plan), efficiency_report(shard.stem, plan, lengths))


def _log(report: PlanReport) -> None:
    packing, longest = report.packing, report.parameters.max_sequence_length
    logger.info(
        "shard %s: %d sequences, %d tokens in %d batches of %d, %.2f%% real",
        *(report.shard, packing.sequences, packing.tokens, packing.batches),
        *(report.parameters.token_budget, 100 * packing.efficiency),
    )
    if packing.truncated_sequences:
        logger.warning(
            "shard %s: %d sequences exceed %d residues and are truncated, %d residues are lost",
            *(report.shard, packing.truncated_sequences, longest, packing.truncated_residues),
        )
    if packing.windowed_sequences:
        logger.info(
            "shard %s: %d sequences exceed %d residues and are computed in %d windows",
            *(report.shard, packing.windowed_sequences, longest, packing.windows),
        )
