"""The step `plan`: from a shard to its plan and its efficiency report."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np

from virnucpro.files import write_json
from virnucpro.plan.cache import PlanCache, plan_address
from virnucpro.plan.items import check_parameters, key_array
from virnucpro.plan.plan import Plan, make_plan, plan_parameters, write_plan
from virnucpro.plan.report import efficiency_report
from virnucpro.sequences.shards import read_shard

__all__ = ["plan_shard"]

logger = logging.getLogger(__name__)


def plan_shard(
    shard: Path,
    plan_path: Path,
    report_path: Path,
    *,
    token_budget: int,
    max_sequence_length: int,
    long_sequences: str = "truncate",
    window_overlap: int = 0,
    cache_dir: Path | None = None,
) -> Plan:
    """Plan a shard, or take its plan from the cache, and write plan and report.

    Args:
        shard: the shard FASTA.
        plan_path: the Parquet file to write.
        report_path: the JSON report to write.
        token_budget: tokens that a batch holds.
        max_sequence_length: residues that an item has at most.
        long_sequences: "truncate" or "window".
        window_overlap: residues that neighbouring windows share at least.
        cache_dir: the cache folder; None for no cache.

    Returns:
        The plan.

    Raises:
        InputError: the parameters do not go together.
        DataError: the shard is missing or damaged.
        OSError: a file cannot be written.
    """
    check_parameters(token_budget, max_sequence_length, long_sequences, window_overlap)
    sequences = read_shard(shard)
    keys = key_array(sequences.keys)
    lengths = np.fromiter(map(len, sequences.residues), np.int64, len(sequences.residues))
    parameters = plan_parameters(token_budget, max_sequence_length, long_sequences, window_overlap)
    cache = None if cache_dir is None else PlanCache(cache_dir)
    address = plan_address(keys, lengths, parameters)
    plan = cache.get(keys, lengths, parameters) if cache else None
    if cache:
        logger.info("plan cache %s %s", "hit" if plan else "miss", address)
    if plan is None:
        plan = make_plan(
            keys,
            lengths,
            token_budget=token_budget,
            max_sequence_length=max_sequence_length,
            long_sequences=long_sequences,
            window_overlap=window_overlap,
        )
        if cache:
            cache.put(address, plan)
    # Never a copy of the cached file: this writes what was verified, and always the same bytes.
    write_plan(plan, plan_path)
    report = efficiency_report(plan, lengths)
    report = {"format": report.pop("format"), "shard": shard.stem, **report}
    write_json(report_path, report, sealed=True)
    _log(report)
    return plan


def _log(report: dict[str, Any]) -> None:
    logger.info(
        "shard %s: %d sequences, %d tokens in %d batches of %d, %.2f%% real",
        *(report[name] for name in ("shard", "sequences", "tokens", "batches", "token_budget")),
        100 * report["efficiency"],
    )
    if report["truncated_sequences"]:
        logger.warning(
            "shard %s: %d sequences exceed %d residues and are truncated, %d residues are lost",
            report["shard"],
            report["truncated_sequences"],
            report["max_sequence_length"],
            report["truncated_residues"],
        )
    if report["windowed_sequences"]:
        logger.info(
            "shard %s: %d sequences exceed %d residues and are computed in %d windows",
            report["shard"],
            report["windowed_sequences"],
            report["max_sequence_length"],
            report["windows"],
        )
