"""The rows of a shard while it is embedded: each is written once, and every step leaves a trace."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from virnucpro.embed.engine import Failure, StepResult
from virnucpro.errors import DataError
from virnucpro.files import reserve
from virnucpro.model.devices import peak_memory_bytes

__all__ = ["ShardOutput"]

logger = logging.getLogger(__name__)

_TRACE_COLUMNS = ("step", "items", "tokens", "seconds", "peak_memory_bytes", "note")


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
        self._quarantined: list[dict[str, Any]] = []
        self._retries = self._recomputed = 0
        self._trace: list[tuple[object, ...]] = []

    def store(
        self, result: StepResult, rows: np.ndarray, batch: dict[str, Any], seconds: float
    ) -> None:
        """Write a step's rows, and put aside those without an embedding.

        Args:
            result: what the engine gave for the batch.
            rows: [B] rows of the batch's sequences in the array.
            batch: the collated batch.
            seconds: how long the step took.
        """
        failures = result.failures + self._outside_range(result)
        self.array[rows] = result.pooled.astype(self.array.dtype)
        np.add.at(self._times_written, rows, 1)
        for failure in failures:
            self._quarantined.append(
                {
                    "row": int(rows[failure.index]),
                    "key": batch["sequence_ids"][failure.index],
                    "reason": failure.reason,
                    "detail": failure.detail,
                }
            )
        for reason, count in sorted(Counter(f.reason for f in failures).items()):
            logger.warning("%d sequences quarantined: %s", count, reason)
        self._retries += result.splits
        self._recomputed += result.recomputed
        notes = [f"split {result.splits}"] if result.splits else []
        notes += [f"float32 {result.recomputed}"] if result.recomputed else []
        self._trace.append(
            (
                len(self._trace),
                batch["num_sequences"],
                len(batch["input_ids"]),
                f"{seconds:.4f}",
                peak_memory_bytes(),
                ", ".join(notes),
            )
        )

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
        return {
            "quarantined": sorted(self._quarantined, key=lambda entry: entry["row"]),
            "steps": len(self._trace),
            "retries": self._retries,
            "recomputed_float32": self._recomputed,
        }

    def trace(self) -> bytes:
        """Give one line a step, tab-separated, below a header."""
        lines = ["\t".join(map(str, line)) for line in (_TRACE_COLUMNS, *self._trace)]
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
