"""The rows of a shard while it is embedded: each is written once, and every step leaves a trace."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from virnucpro.embed.device_lock import claimed
from virnucpro.embed.engine import Failure, StepResult
from virnucpro.errors import DataError
from virnucpro.files import reserve
from virnucpro.model.devices import peak_memory_bytes

__all__ = ["ShardOutput", "StepRecord"]

logger = logging.getLogger(__name__)

_TRACE_COLUMNS = ("step", "items", "tokens", "seconds", "peak_memory_bytes", "note")


@dataclass(frozen=True)
class StepRecord:
    """What is known of a step beside its values.

    Attributes:
        number: of the step among the shard's, from 0.
        rows: [B] rows of its sequences in the shard's array.
        tokens: real tokens, BOS and EOS included.
        seconds: how long it took.
        peak_memory_bytes: most memory so far, see `virnucpro.model.devices.peak_memory_bytes`.
        retries: how often the step was repeated at half its tokens.
        recomputed: rows that were computed again in float32.
        quarantined: the receipt's entry of each sequence without an embedding.
        device: the GPU that the process holds and for how long it waited for it, with the first
            step of a process; else empty.
    """

    number: int
    rows: Sequence[int]
    tokens: int
    seconds: float
    peak_memory_bytes: int
    retries: int
    recomputed: int
    quarantined: Sequence[dict[str, Any]]
    device: str = ""

    def trace(self) -> tuple[object, ...]:
        """Give the cells of the step's line in the trace."""
        notes = [f"GPU {self.device}"] if self.device else []
        notes += [f"split {self.retries}"] if self.retries else []
        notes += [f"float32 {self.recomputed}"] if self.recomputed else []
        seconds, memory = f"{self.seconds:.4f}", self.peak_memory_bytes
        return self.number, len(self.rows), self.tokens, seconds, memory, ", ".join(notes)


class ShardOutput:
    """The array of a shard, [sequences, layers, dim], on the disk with its space reserved.

    Args:
        path: the file to make, in numpy's format.
        shape: of the array.
        dtype: ``float32`` or ``float16``.

    Raises:
        DataError: the disk has not enough space.
    """

    def __init__(self, path: Path, shape: tuple[int, int, int], dtype: str) -> None:
        self.path = path
        self.array = _create_array(path, shape, np.dtype(dtype))
        self._times_written = np.zeros(len(self.array), dtype=np.int64)
        self._steps: dict[int, StepRecord] = {}
        self._device = str(claimed() or "")

    def store(
        self,
        number: int,
        result: StepResult,
        rows: np.ndarray,
        batch: dict[str, Any],
        seconds: float,
    ) -> StepRecord:
        """Write a step's rows, and put aside those without an embedding.

        Args:
            number: of the step among the shard's.
            result: what the engine gave for the batch.
            rows: [B] rows of the batch's sequences in the array.
            batch: the collated batch.
            seconds: how long the step took.

        Returns:
            What was noted of the step.
        """
        failures = result.failures + self._outside_range(result)
        for reason, count in sorted(Counter(f.reason for f in failures).items()):
            logger.warning("%d sequences quarantined: %s", count, reason)
        record = StepRecord(
            number=number,
            rows=rows.tolist(),
            tokens=len(batch["input_ids"]),
            seconds=seconds,
            peak_memory_bytes=peak_memory_bytes(),
            retries=result.splits,
            recomputed=result.recomputed,
            quarantined=[
                {
                    "row": int(rows[failure.index]),
                    "key": batch["sequence_ids"][failure.index],
                    "reason": failure.reason,
                    "detail": failure.detail,
                }
                for failure in failures
            ],
            device=self._device,
        )
        self._device = ""
        self.take(record, result.pooled.astype(self.array.dtype))
        return record

    def take(self, record: StepRecord, values: np.ndarray) -> None:
        """Write the rows of a step, [B, layers, dim], as they will stand in the file."""
        self.array[record.rows] = values
        np.add.at(self._times_written, record.rows, 1)
        self._steps[record.number] = record

    def finish(self) -> None:
        """Flush the array, after checking that every row was written once.

        Raises:
            DataError: a row was written twice or not at all.
        """
        wrong = np.flatnonzero(self._times_written != 1)
        if len(wrong):
            raise DataError(
                f"{len(wrong)} sequences were not computed exactly once, the first in row "
                f"{wrong[0]}",
                path=self.path,
            )
        if isinstance(self.array, np.memmap):
            self.array.flush()

    def summary(self) -> dict[str, Any]:
        """Give the receipt's account of the steps."""
        steps = self._steps.values()
        quarantined = [entry for step in steps for entry in step.quarantined]
        return {
            "quarantined": sorted(quarantined, key=lambda entry: entry["row"]),
            "steps": len(steps),
            "retries": sum(step.retries for step in steps),
            "recomputed_float32": sum(step.recomputed for step in steps),
        }

    def trace(self) -> bytes:
        """Give one line a step, tab-separated, below a header."""
        steps = (self._steps[number].trace() for number in sorted(self._steps))
        lines = ["\t".join(map(str, line)) for line in (_TRACE_COLUMNS, *steps)]
        return ("\n".join(lines) + "\n").encode()

    def _outside_range(self, result: StepResult) -> list[Failure]:
        """Blank the rows with a value that the output's dtype cannot hold."""
        largest = float(np.finfo(self.array.dtype).max)
        with np.errstate(invalid="ignore"):
            outside = np.flatnonzero((np.abs(result.pooled) > largest).any(axis=(1, 2)))
        result.pooled[outside] = np.nan
        detail = f"a value does not fit into {self.array.dtype}"
        return [Failure(index, "out_of_range", detail) for index in outside.tolist()]


def _create_array(path: Path, shape: tuple[int, int, int], dtype: np.dtype[Any]) -> np.ndarray:
    """Make the array on disk, all NaN."""
    if 0 in shape:
        array = np.empty(shape, dtype=dtype)
        with path.open("wb") as handle:
            np.save(handle, array, allow_pickle=False)
        return array
    mapped = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    reserve(path, path.stat().st_size)
    mapped[:] = np.nan
    return mapped
