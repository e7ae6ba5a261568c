"""The values of a shard while it is embedded: each item is written once, every step leaves a trace.

An item is a sequence, what is left of one that was truncated, or a window of one. The values of a
sequence's windows are put together when the last of them is there.
"""

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
from virnucpro.formats import TRACE_COLUMNS, trace_checksum
from virnucpro.model.devices import peak_memory_bytes
from virnucpro.plan.plan import Plan

__all__ = ["OutputFiles", "ShardOutput", "StepRecord"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class OutputFiles:
    """The arrays of a shard, in numpy's format.

    Attributes:
        embeddings: [sequences, layers, dim].
        residues: [residues, layers, dim], those of all sequences in the shard's order, without the
            residues that were cut off; None where they are not kept.
        pseudo_perplexity: [sequences] float64; None where it is not computed.
    """

    embeddings: Path
    residues: Path | None = None
    pseudo_perplexity: Path | None = None


@dataclass(frozen=True)
class StepRecord:
    """What is known of a step beside its vectors.

    Attributes:
        number: of the step among the shard's, from 0.
        items: [B] numbers of its items in the shard's plan.
        tokens: real tokens, BOS and EOS included.
        seconds: how long it took.
        peak_memory_bytes: most memory so far, see `virnucpro.model.devices.peak_memory_bytes`.
        retries: how often the step was repeated at half its tokens.
        recomputed: items that were computed again in float32.
        quarantined: the receipt's entry of each item without an embedding.
        device: the GPU that the process holds and for how long it waited for it, with the first
            step of a process; else empty.
        likelihood: [B] mean log-likelihoods, where they were asked for; else empty.
    """

    number: int
    items: Sequence[int]
    tokens: int
    seconds: float
    peak_memory_bytes: int
    retries: int
    recomputed: int
    quarantined: Sequence[dict[str, Any]]
    device: str = ""
    likelihood: Sequence[float] = ()

    def trace(self) -> str:
        """Give the step's line in the trace; its last cell is a checksum of the others.

        Times differ from run to run, so the receipt, which does not, cannot hold a hash of them.
        """
        notes = [f"GPU {self.device}"] if self.device else []
        notes += [f"split {self.retries}"] if self.retries else []
        notes += [f"float32 {self.recomputed}"] if self.recomputed else []
        seconds, memory = f"{self.seconds:.4f}", self.peak_memory_bytes
        cells = (self.number, len(self.items), self.tokens, seconds, memory, ", ".join(notes))
        line = "\t".join(map(str, cells))
        return f"{line}\t{trace_checksum(line)}"


class ShardOutput:
    """The arrays of a shard on the disk, with their space reserved.

    Args:
        files: the files to make.
        plan: of the shard.
        shape: of a sequence's value, [layers, dim].
        dtype: ``float32`` or ``float16``.
        pooling: one of `virnucpro.embed.readout.POOLINGS`.

    Attributes:
        plan: of the shard.
        value_dtype: what an item's value is handed on in: the array's dtype, or float32 where
            windows are still to be put together.

    Raises:
        DataError: the disk has not enough space.
    """

    def __init__(
        self, files: OutputFiles, plan: Plan, shape: tuple[int, int], dtype: str, pooling: str
    ) -> None:
        self.plan = plan
        self._path = files.embeddings
        self._arrays: list[np.ndarray] = []
        self._embeddings = self._create(files.embeddings, (plan.sequences, *shape), dtype)
        self._first, self._end = plan.represented
        self._perplexity = self._residues = None
        if files.pseudo_perplexity is not None:
            self._perplexity = self._create(files.pseudo_perplexity, (plan.sequences,), "float64")
        if files.residues is not None:
            self._offsets = plan.residue_offsets
            total = int(self._offsets[-1])
            self._residues = self._create(files.residues, (total, *shape), dtype)
        self._pooling = pooling
        windowed = bool((plan.windows > 1).any())
        self.value_dtype = np.dtype(np.float32) if windowed else self._embeddings.dtype
        self._windows: dict[int, list[tuple[int, np.ndarray, float]]] = {}
        self._times_written = np.zeros(plan.items, dtype=np.int64)
        self._steps: dict[int, StepRecord] = {}
        self._device = str(claimed() or "")

    @property
    def deleted(self) -> bool:
        """Whether the file of the embeddings is not there any more."""
        return not self._path.exists()

    def store(
        self,
        number: int,
        result: StepResult,
        items: np.ndarray,
        batch: dict[str, Any],
        seconds: float,
    ) -> tuple[StepRecord, np.ndarray]:
        """Write a step's values, and put aside the items without an embedding.

        Args:
            number: of the step among the shard's.
            result: what the engine gave for the batch.
            items: [B] numbers of the batch's items in the plan.
            batch: the collated batch.
            seconds: how long the step took.

        Returns:
            What was noted of the step, and its values [B, layers, dim], from which `take` does the
            same again, residues apart.
        """
        if self._residues is not None:
            self._store_residues(items, result.residues or [], self._residues)
        failures = result.failures + self._outside_range(result)
        for reason, count in sorted(Counter(f.reason for f in failures).items()):
            logger.warning("%d sequences quarantined: %s", count, reason)
        record = StepRecord(
            number=number,
            items=items.tolist(),
            tokens=len(batch["input_ids"]),
            seconds=seconds,
            peak_memory_bytes=peak_memory_bytes(),
            retries=result.splits,
            recomputed=result.recomputed,
            quarantined=[self._entry(int(items[failure.index]), failure) for failure in failures],
            device=self._device,
            likelihood=[] if result.likelihood is None else result.likelihood.tolist(),
        )
        self._device = ""
        values = result.pooled.astype(self.value_dtype)
        self.take(record, values)
        return record, values

    def take(self, record: StepRecord, values: np.ndarray) -> None:
        """Write the values of a step's items, [B, layers, dim]."""
        items = np.asarray(record.items, np.int64)
        likelihood = np.asarray(record.likelihood or np.zeros(len(items)), np.float32)
        whole = self.plan.windows[items] == 1
        self._write(self.plan.row[items[whole]], values[whole], likelihood[whole])
        for place in np.flatnonzero(~whole).tolist():
            item, row = int(items[place]), int(self.plan.row[items[place]])
            found = self._windows.setdefault(row, [])
            found.append((item, values[place], float(likelihood[place])))
            if len(found) == self.plan.windows[item]:
                del self._windows[row]
                self._put_together(row, sorted(found, key=lambda one: self.plan.start[one[0]]))
        np.add.at(self._times_written, items, 1)
        self._steps[record.number] = record

    def finish(self) -> None:
        """Flush the arrays, after checking that every item was written once.

        Raises:
            DataError: an item was written twice or not at all.
        """
        wrong = np.flatnonzero(self._times_written != 1)
        if len(wrong):
            raise DataError(
                f"{len(wrong)} items were not computed exactly once, the first of the sequence in "
                f"row {self.plan.row[wrong[0]]}",
                path=self._path,
            )
        for array in self._arrays:
            if isinstance(array, np.memmap):
                array.flush()

    def summary(self) -> dict[str, Any]:
        """Give the receipt's account of the steps; a sequence is quarantined once."""
        steps = self._steps.values()
        entries = [
            entry for number in sorted(self._steps) for entry in self._steps[number].quarantined
        ]
        by_row = {entry["row"]: entry for entry in reversed(entries)}
        return {
            "quarantined": [by_row[row] for row in sorted(by_row)],
            "steps": len(steps),
            "retries": sum(step.retries for step in steps),
            "recomputed_float32": sum(step.recomputed for step in steps),
        }

    def trace(self) -> bytes:
        """Give one line a step, tab-separated, below a header."""
        steps = (self._steps[number].trace() for number in sorted(self._steps))
        return "".join(f"{line}\n" for line in ("\t".join(TRACE_COLUMNS), *steps)).encode()

    def _create(self, path: Path, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        """Make an array on the disk."""
        if 0 in shape:
            array = np.empty(shape, dtype=dtype)
            with path.open("wb") as handle:
                np.save(handle, array, allow_pickle=False)
        else:
            array = np.lib.format.open_memmap(path, mode="w+", dtype=np.dtype(dtype), shape=shape)
            reserve(path, path.stat().st_size)
        self._arrays.append(array)
        return array

    def _write(self, rows: np.ndarray, values: np.ndarray, likelihood: np.ndarray) -> None:
        """Write the values of whole sequences: [n, layers, dim] and mean log-likelihoods [n]."""
        self._embeddings[rows] = values
        if self._perplexity is not None:
            scores = np.exp(-likelihood.astype(np.float64))
            scores[np.isnan(scores)] = np.nan  # the one NaN: those of a piece have lost their sign
            self._perplexity[rows] = scores

    def _put_together(self, row: int, windows: list[tuple[int, np.ndarray, float]]) -> None:
        """Write the values of a sequence from those of its windows, which are in order.

        Each residue counts once: a window's mean, or its `cls`, counts by the residues that are
        taken from it. Sums are plain ones, for a library's product may round as it likes.
        """
        items = [item for item, _, _ in windows]
        shares = (self._end[items] - self._first[items]).astype(np.float64)
        shares /= shares.sum()
        values = np.stack([value for _, value, _ in windows])
        if self._pooling == "max":
            value = values.max(axis=0)
        else:
            value = (shares[:, None, None] * values).sum(axis=0)
        likelihood = (shares * [found for _, _, found in windows]).sum()
        self._write(np.array([row]), value[None].astype(np.float32), np.array([likelihood]))

    def _store_residues(
        self, items: np.ndarray, found: Sequence[np.ndarray | None], array: np.ndarray
    ) -> None:
        """Write the residues that each item stands for; NaN where it failed."""
        for item, values in zip(items.tolist(), found, strict=True):
            first = self._offsets[self.plan.row[item]] + self._first[item]
            end = first + self._end[item] - self._first[item]
            array[first:end] = np.nan if values is None else values

    def _outside_range(self, result: StepResult) -> list[Failure]:
        """Blank the rows with a value that the output's dtype cannot hold."""
        largest = float(np.finfo(self._embeddings.dtype).max)
        with np.errstate(invalid="ignore"):
            outside = np.flatnonzero((np.abs(result.pooled) > largest).any(axis=(1, 2)))
        result.pooled[outside] = np.nan
        detail = f"a value does not fit into {self._embeddings.dtype}"
        return [Failure(index, "out_of_range", detail) for index in outside.tolist()]

    def _entry(self, item: int, failure: Failure) -> dict[str, Any]:
        """Give the receipt's entry of an item without an embedding."""
        detail = failure.detail
        if self.plan.windows[item] > 1:
            detail = f"residues {self.plan.start[item] + 1} to {self.plan.end[item]}: {detail}"
        return {
            "row": int(self.plan.row[item]),
            "key": self.plan.keys[item].tobytes().hex(),
            "reason": failure.reason,
            "detail": detail,
        }
