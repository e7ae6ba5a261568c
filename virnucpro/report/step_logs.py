"""The step logs of a sample's shards: what each step took, and sums over them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from virnucpro.errors import DataError
from virnucpro.formats import STEP_LOG_COLUMNS, step_log_checksum
from virnucpro.merge.tables import read_table
from virnucpro.plan.report import share

__all__ = ["StepLog", "StepTotals", "read_step_log", "summarise_step_logs"]


@dataclass(frozen=True)
class StepLog:
    """The steps of one shard, in order."""

    tokens: npt.NDArray[np.int64]  # [steps] real ones
    seconds: npt.NDArray[np.float64]  # [steps]
    peak_memory_bytes: npt.NDArray[np.int64]  # [steps] 0 where the device does not tell


@dataclass(frozen=True)
class StepTotals:
    """Some steps, added up."""

    steps: int
    tokens: int  # real ones
    seconds: float
    tokens_per_second: float | None  # None where the time is not known
    filled: float  # real tokens over those of the steps' shapes
    peak_memory_bytes: int | None  # None where the device does not tell


def read_step_log(embeddings_dir: Path, shard: str, steps: int) -> StepLog:
    """Read a shard's step log.

    Args:
        embeddings_dir: holds ``{shard}.steps.tsv``.
        shard: the shard's name.
        steps: their number, as the receipt has it.

    Raises:
        DataError: it is missing or damaged.
    """
    path = embeddings_dir / f"{shard}.steps.tsv"
    rows = list(read_table(path, STEP_LOG_COLUMNS))
    try:
        if len(rows) != steps:
            raise ValueError(f"it has {len(rows)} steps, the receipt {steps}")
        for row in rows:
            line = "\t".join(row[name] for name in STEP_LOG_COLUMNS[:-1])
            if step_log_checksum(line) != row["crc32"]:
                raise ValueError(f"the checksum of step {row['step']} is wrong")
        return StepLog(
            np.array([int(row["tokens"]) for row in rows], dtype=np.int64),
            np.array([float(row["seconds"]) for row in rows], dtype=np.float64),
            np.array([int(row["peak_memory_bytes"]) for row in rows], dtype=np.int64),
        )
    except ValueError as error:
        raise DataError(
            f"is damaged ({error})", path=path, hint="remove the shard's embeddings and run again"
        ) from error


def summarise_step_logs(
    step_logs: Sequence[StepLog], tokens_per_step: Sequence[int]
) -> tuple[StepTotals, list[StepTotals]]:
    """Add up the step logs.

    Args:
        step_logs: one per shard.
        tokens_per_step: tokens of the fixed shape of each shard's steps.

    Returns:
        The totals of all shards, and those of each.
    """
    capacities = [
        len(step_log.tokens) * tokens
        for step_log, tokens in zip(step_logs, tokens_per_step, strict=True)
    ]
    shards = [
        _add_up([step_log], capacity)
        for step_log, capacity in zip(step_logs, capacities, strict=True)
    ]
    return _add_up(step_logs, sum(capacities)), shards


def _add_up(step_logs: Sequence[StepLog], capacity: int) -> StepTotals:
    tokens = sum(int(step_log.tokens.sum()) for step_log in step_logs)
    seconds = sum(float(step_log.seconds.sum()) for step_log in step_logs)
    peak = max(int(step_log.peak_memory_bytes.max(initial=0)) for step_log in step_logs)
    return StepTotals(
        steps=sum(len(step_log.tokens) for step_log in step_logs),
        tokens=tokens,
        seconds=round(seconds, 4),
        tokens_per_second=round(tokens / seconds, 1) if seconds else None,
        filled=share(tokens, capacity),
        peak_memory_bytes=peak or None,
    )
