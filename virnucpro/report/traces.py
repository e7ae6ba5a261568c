"""The traces of a sample's shards: what each step took, and sums over them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from virnucpro.errors import DataError
from virnucpro.formats import TRACE_COLUMNS, trace_checksum
from virnucpro.merge.tables import read_table
from virnucpro.plan.report import share

__all__ = ["StepTotals", "Trace", "read_trace", "summarise_traces"]


@dataclass(frozen=True)
class Trace:
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


def read_trace(embeddings_dir: Path, shard: str, steps: int) -> Trace:
    """Read a shard's trace.

    Args:
        embeddings_dir: holds ``{shard}.trace.tsv``.
        shard: the shard's name.
        steps: their number, as the receipt has it.

    Raises:
        DataError: it is missing or damaged.
    """
    path = embeddings_dir / f"{shard}.trace.tsv"
    rows = list(read_table(path, TRACE_COLUMNS))
    try:
        if len(rows) != steps:
            raise ValueError(f"it has {len(rows)} steps, the receipt {steps}")
        for row in rows:
            line = "\t".join(row[name] for name in TRACE_COLUMNS[:-1])
            if trace_checksum(line) != row["crc32"]:
                raise ValueError(f"the checksum of step {row['step']} is wrong")
        return Trace(
            np.array([int(row["tokens"]) for row in rows], dtype=np.int64),
            np.array([float(row["seconds"]) for row in rows], dtype=np.float64),
            np.array([int(row["peak_memory_bytes"]) for row in rows], dtype=np.int64),
        )
    except ValueError as error:
        raise DataError(
            f"is damaged ({error})", path=path, hint="remove the shard's embeddings and run again"
        ) from error


def summarise_traces(
    traces: Sequence[Trace], tokens_per_step: Sequence[int]
) -> tuple[StepTotals, list[StepTotals]]:
    """Add up the traces.

    Args:
        traces: one per shard.
        tokens_per_step: tokens of the fixed shape of each shard's steps.

    Returns:
        The totals of all shards, and those of each.
    """
    capacities = [
        len(trace.tokens) * tokens for trace, tokens in zip(traces, tokens_per_step, strict=True)
    ]
    shards = [
        _add_up([trace], capacity) for trace, capacity in zip(traces, capacities, strict=True)
    ]
    return _add_up(traces, sum(capacities)), shards


def _add_up(traces: Sequence[Trace], capacity: int) -> StepTotals:
    tokens = sum(int(trace.tokens.sum()) for trace in traces)
    seconds = sum(float(trace.seconds.sum()) for trace in traces)
    peak = max(int(trace.peak_memory_bytes.max(initial=0)) for trace in traces)
    return StepTotals(
        steps=sum(len(trace.tokens) for trace in traces),
        tokens=tokens,
        seconds=round(seconds, 4),
        tokens_per_second=round(tokens / seconds, 1) if seconds else None,
        filled=share(tokens, capacity),
        peak_memory_bytes=peak or None,
    )
