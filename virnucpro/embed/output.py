"""The values of a shard while it is embedded: each item is written once, each step is logged.

An item is a sequence, what is left of one that was truncated, or a window of one. The values of a
sequence's windows are put together when the last of them is there.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from virnucpro.embed.batch import PackedBatch
from virnucpro.embed.device_lock import claimed
from virnucpro.embed.engine import Failure, StepResult
from virnucpro.embed.receipt import Quarantined
from virnucpro.embed.step_log import StepRecord, step_log_bytes
from virnucpro.errors import DataError
from virnucpro.files import publish, reserve, sha256_of, temporary_file
from virnucpro.model.devices import peak_memory_bytes
from virnucpro.plan.plan import Plan
from virnucpro.quarantine import Reason

__all__ = ["OutputFiles", "ShardOutput"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class OutputFiles:
    """The arrays of a shard, in numpy's format."""

    embeddings: Path  # [sequences, layers, dim]
    # [residues, layers, dim], those of all sequences in the shard's order, without the residues
    # that were cut off; None where they are not kept.
    residues: Path | None = None
    pseudo_perplexity: Path | None = None  # [sequences] float64; None where it is not computed

    @property
    def paths(self) -> dict[str, Path]:
        """Those that there are, by name."""
        return {name: path for name, path in vars(self).items() if path is not None}


class ShardOutput:
    """The arrays of a shard on the disk, with their space reserved; see `reserve`.

    Args:
        targets: the final names.
        files: the files to write.
        plan: of the shard.
        shape: of a sequence's value, [layers, dim].
        dtype: ``float32`` or ``float16``.
        pooling: one of `virnucpro.formats.POOLINGS`.

    Attributes:
        plan: of the shard.
        value_dtype: what an item's value is handed on in: the array's dtype, or float32 where
            windows are still to be put together.

    Raises:
        DataError: the disk has not enough space.
    """

    def __init__(
        self,
        targets: OutputFiles,
        files: OutputFiles,
        plan: Plan,
        shape: tuple[int, int],
        dtype: str,
        pooling: str,
    ) -> None:
        self.plan = plan
        self._targets, self._files = targets, files
        self._arrays: list[np.ndarray] = []
        self._embeddings = self._create(files.embeddings, (plan.sequences, *shape), dtype)
        self._first, self._end = plan.owned_spans
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

    @classmethod
    @contextmanager
    def reserve(
        cls, targets: OutputFiles, plan: Plan, shape: tuple[int, int], dtype: str, pooling: str
    ) -> Iterator[Self]:
        """Yield an output under temporary names, which go with the block if not published.

        Args:
            targets: the final names.
            plan: as the class, like the others.
            shape: see there.
            dtype: see there.
            pooling: see there.
        """
        with ExitStack() as stack:
            temporary = {
                name: stack.enter_context(temporary_file(path))
                for name, path in targets.paths.items()
            }
            yield cls(targets, OutputFiles(**temporary), plan, shape, dtype, pooling)

    @property
    def deleted(self) -> bool:
        """Whether the file of the embeddings is not there any more."""
        return not self._files.embeddings.exists()

    @property
    def vectors(self) -> dict[str, np.ndarray]:
        """The arrays of which each sequence has one row, by name."""
        scores = {} if self._perplexity is None else {"pseudo_perplexity": self._perplexity}
        return {"embeddings": self._embeddings, **scores}

    def mark_known(self, rows: np.ndarray) -> None:
        """Count sequences, [sequences] bool, as written: their rows are there already."""
        self._times_written[rows[self.plan.row]] = 1

    @property
    def steps(self) -> list[StepRecord]:
        """What was noted of the steps so far, in their order."""
        return [self._steps[number] for number in sorted(self._steps)]

    def store(
        self,
        number: int,
        result: StepResult,
        items: np.ndarray,
        batch: PackedBatch,
        seconds: float,
    ) -> tuple[StepRecord, np.ndarray]:
        """Write a step's values, and put aside the items without an embedding.

        Args:
            number: of the step among the shard's.
            result: what the engine gave for the batch.
            items: [B] numbers of the batch's items in the plan.
            batch: the packed batch.
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
            tokens=len(batch.tokens),
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
                self._combine_windows(row, sorted(found, key=lambda one: self.plan.start[one[0]]))
        np.add.at(self._times_written, items, 1)
        self._steps[record.number] = record

    def finish(self) -> dict[str, str]:
        """Flush the arrays, after checking that every item was written once.

        Returns:
            The SHA-256 of each array's file, by the names of `OutputFiles`.

        Raises:
            DataError: an item was written twice or not at all.
        """
        wrong = np.flatnonzero(self._times_written != 1)
        if len(wrong):
            raise DataError(
                f"{len(wrong)} items were not computed exactly once, the first of the sequence in "
                f"row {self.plan.row[wrong[0]]}",
                path=self._targets.embeddings,
            )
        for array in self._arrays:
            if isinstance(array, np.memmap):
                array.flush()
        return {name: sha256_of(path) for name, path in self._files.paths.items()}

    def publish(self) -> None:
        """Put the finished files under their final names, that of the embeddings last."""
        targets = self._targets.paths
        for name, path in reversed(self._files.paths.items()):
            publish(path, targets[name])

    def quarantined(self) -> list[Quarantined]:
        """Return the sequences without an embedding, by row, each once."""
        entries = [entry for step in self.steps for entry in step.quarantined]
        by_row = {entry.row: entry for entry in reversed(entries)}
        return [by_row[row] for row in sorted(by_row)]

    def step_log(self) -> bytes:
        """Return the step log of all steps."""
        return step_log_bytes(self.steps)

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
            # The one NaN: those of a checkpoint have lost their sign.
            scores[np.isnan(scores)] = np.nan
            self._perplexity[rows] = scores

    def _combine_windows(self, row: int, windows: list[tuple[int, np.ndarray, float]]) -> None:
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
        return [Failure(index, Reason.OUT_OF_RANGE, detail) for index in outside.tolist()]

    def _entry(self, item: int, failure: Failure) -> Quarantined:
        """Return the receipt's entry of an item without an embedding."""
        detail = failure.detail
        if self.plan.windows[item] > 1:
            detail = f"residues {self.plan.start[item] + 1} to {self.plan.end[item]}: {detail}"
        key = self.plan.keys[item].tobytes().hex()
        return Quarantined(int(self.plan.row[item]), key, failure.reason, detail)
