"""Runs packed batches through the model and gives what is read out of them, item by item.

`Engine.stream` takes batches and yields pooled representations, and on request likelihoods and the
representations of residues. A step that does not fit into memory is packed again at half the tokens
and repeated; a row that is not finite is computed again alone in float32. Both are reported,
neither loses a sequence.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from virnucpro.embed.batch import PackedBatch
from virnucpro.embed.exact import ExactModel
from virnucpro.embed.graph import StepGraph
from virnucpro.embed.readout import Readout, StepValues
from virnucpro.embed.step import Step, StepShape
from virnucpro.model.esm2 import PackedESM2
from virnucpro.quarantine import Reason

__all__ = ["Engine", "Failure", "StepResult"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Failure:
    """A sequence without an embedding: its place in the batch, the reason and what was seen."""

    index: int
    reason: Reason
    detail: str


@dataclass
class StepResult:
    """What came out of one batch.

    Attributes:
        pooled: [B, layers, dim] float32 on the CPU, NaN for failed sequences.
        likelihood: [B] float32, mean log-likelihood of the residues, NaN for failed sequences; None
            where it was not asked for.
        residues: of each of the B the representations of the residues that are pooled, [residues,
            layers, dim], and None for a failed one; None where they were not asked for.
        failures: the sequences without an embedding.
        splits: how often the batch was repeated at half its tokens.
        recomputed: how many rows were computed again in float32.
    """

    pooled: np.ndarray
    likelihood: np.ndarray | None = None
    residues: list[np.ndarray | None] | None = None
    failures: list[Failure] = field(default_factory=list)
    splits: int = 0
    recomputed: int = 0


class _Launched:
    """A result on its way from the device.

    Args:
        values: on the device; may be overwritten by later steps, which are behind the copy in the
            device's queue.
    """

    def __init__(self, values: StepValues) -> None:
        self._done: torch.cuda.Event | None = None
        pooled, likelihood, residues = values
        self._values = StepValues(
            _start_copy(pooled),
            None if likelihood is None else _start_copy(likelihood),
            None if residues is None else _start_copy(residues),
        )
        if values.pooled.is_cuda:
            self._done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._done.record()

    def result(self) -> StepValues:
        """Wait for the copy; gives the values on the CPU."""
        if self._done is not None:
            self._done.synchronize()
        return self._values


def _start_copy(tensor: Tensor) -> Tensor:
    """Start to copy a tensor from its device into memory of its own; one on the CPU is given.

    Of devices that are neither, the copy is waited for.
    """
    if not tensor.is_cuda:
        return tensor.cpu()
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(
        tensor, non_blocking=True
    )


class Engine:
    """A model, ready for steps of one shape.

    Args:
        model: the packed model on its device.
        shape: the shape of every step.
        readout: what is read out of every step.
        exact_model: computes in float32, when a row is not finite; `None` when the model is float32
            already.
    """

    def __init__(
        self,
        model: PackedESM2,
        shape: StepShape,
        readout: Readout,
        exact_model: ExactModel | None = None,
    ) -> None:
        self.model = model
        self.shape = shape
        self.readout = readout
        self._exact = exact_model
        self._graph: StepGraph | None = None
        # Tokens that a step was seen to have memory for, once one had not.
        self._fits: int | None = None

    def embed(self, batch: PackedBatch) -> StepResult:
        """Embed one packed batch.

        Args:
            batch: of at most the shape's tokens.

        Raises:
            RuntimeError: the device failed in a way that is not lack of memory; the process
                should end, for a CUDA context does not recover.
        """
        return next(self.stream([batch]))[1]

    def stream(self, batches: Iterable[PackedBatch]) -> Iterator[tuple[PackedBatch, StepResult]]:
        """Embed batches one after the other, the device working on one while the next is made.

        Args:
            batches: as `embed`.

        Yields:
            Each batch with its result, in the order given.

        Raises:
            RuntimeError: as `embed`.
        """
        waiting: tuple[PackedBatch, _Launched | str] | None = None
        for batch in batches:
            launched = self._start(batch)
            if waiting is not None:
                yield waiting[0], self._finish(*waiting)
            waiting = batch, launched
            if self.model.device.type == "cpu":  # the step is done: its time is its own
                yield batch, self._finish(batch, launched)
                waiting = None
        if waiting is not None:
            yield waiting[0], self._finish(*waiting)

    @torch.inference_mode()
    def forward(self, step: Step, shape: StepShape, model: PackedESM2 | None = None) -> StepValues:
        """Start one step; gives its values on the device, which hold until the next step.

        Steps of the run's shape are replayed from a CUDA graph where the device has them.
        """
        model = model or self.model
        if shape == self.shape and model is self.model and model.backend.on_device:
            if self._graph is None:
                self._graph = StepGraph(model, step, shape.max_seqlen, self.readout)
            return self._graph(step)
        segments = model.prepare(step.positions, step.cu_seqlens, shape.max_seqlen)
        tokens = step.tokens.to(model.device, non_blocking=True)
        bounds = step.cu_seqlens.to(model.device, non_blocking=True)
        ranges = step.ranges.to(model.device, non_blocking=True)
        return self.readout(model, tokens, segments, bounds, ranges)

    def _start(self, batch: PackedBatch) -> _Launched | str:
        """Start a batch's step; after one that did not fit, none is started at that size again."""
        if self._fits is not None and self._fits < self.shape.tokens:
            return f"steps are of at most {self._fits} tokens since one did not fit"
        return self._launch(Step.from_batch(batch, self.shape), self.shape)

    def _launch(self, step: Step, shape: StepShape) -> _Launched | str:
        """Start a step and the copy of its result, or say why the memory did not suffice."""
        try:
            return _Launched(self.forward(step, shape))
        except torch.cuda.OutOfMemoryError as error:
            return str(error).splitlines()[0]

    def _finish(self, batch: PackedBatch, launched: _Launched | str) -> StepResult:
        """Wait for a step, and compute again what failed in it."""
        count, readout = batch.sequences, self.readout
        shape = (count, len(readout.layers), self.model.config.dim)
        result = StepResult(np.full(shape, np.nan, dtype=np.float32))
        if readout.likelihood:
            result.likelihood = np.full(count, np.nan, dtype=np.float32)
        if readout.residues is not None:
            result.residues = [None] * count
        self._take(result, batch, np.arange(count), self.shape, launched)
        self._recompute_nonfinite(result, batch)
        return result

    def _take(
        self,
        result: StepResult,
        batch: PackedBatch,
        rows: np.ndarray,
        shape: StepShape,
        launched: _Launched | str,
    ) -> None:
        """Put a step's rows in their place; one out of memory is repeated in smaller steps."""
        if isinstance(launched, _Launched):
            _put(result, batch, rows, launched.result())
            return
        torch.cuda.empty_cache()
        longest = int(batch.lengths.max())
        if shape.tokens == longest:  # nothing else is in the step
            result.failures.append(Failure(int(rows[0]), Reason.OUT_OF_MEMORY, launched))
            logger.error("out of memory on one sequence, quarantined: %s", launched)
            return
        half = max(min(shape.tokens // 2, self._fits or shape.tokens), longest)
        result.splits += 1
        if self._fits is None or half < self._fits:
            logger.warning(
                "out of memory at %d tokens, going on at %d: %s", shape.tokens, half, launched
            )
            self._fits = half
        smaller = StepShape.for_lengths(half, len(rows), shape.max_seqlen)
        for part in batch.repacked(half):
            some = batch.select(part)
            again = self._launch(Step.from_batch(some, smaller), smaller)
            self._take(result, some, rows[part], smaller, again)

    def _recompute_nonfinite(self, result: StepResult, batch: PackedBatch) -> None:
        """Compute rows that are not finite again, alone and in float32."""
        failed = {failure.index for failure in result.failures}
        for row in np.flatnonzero(~_finite(result, slice(None))).tolist():
            if row in failed:
                continue
            one = batch.select(np.array([row]))
            values = self._exactly(one)
            if values is not None:
                result.recomputed += 1
                _put(result, one, np.array([row]), values)
            if not _finite(result, [row])[0]:
                result.pooled[row] = np.nan
                result.failures.append(self._why_not_finite(row, result, values))
        for failure in result.failures:
            if result.likelihood is not None:
                result.likelihood[failure.index] = np.nan
            if result.residues is not None:
                result.residues[failure.index] = None

    def _why_not_finite(self, row: int, result: StepResult, exact: StepValues | None) -> Failure:
        """Say what is wrong with a row; `exact` is what float32 gave, where it was computed."""
        if self._exact is not None and exact is None:
            return Failure(row, Reason.NOT_FINITE, "NaN or infinity, and no memory for float32")
        residues = None if result.residues is None else result.residues[row]
        # Pooled in float16 as they are written: what overflows there is a number in the model.
        if residues is not None and np.isinf(residues).any() and not np.isnan(residues).any():
            return Failure(
                row, Reason.OUT_OF_RANGE, f"a residue beyond what {residues.dtype} holds"
            )
        return Failure(row, Reason.NOT_FINITE, "NaN or infinity, in float32 too")

    def _exactly(self, batch: PackedBatch) -> StepValues | None:
        """Embed one sequence in float32; None where that cannot be, or is no other model."""
        if self._exact is None:
            return None
        tokens = len(batch.tokens)
        shape = StepShape(tokens, 1, max(tokens, 1))
        step = Step.from_batch(batch, shape)
        return self._exact.run(lambda model: _Launched(self.forward(step, shape, model)).result())


def _put(result: StepResult, batch: PackedBatch, rows: np.ndarray, values: StepValues) -> None:
    """Put the values of a batch into the rows of a result that are its sequences'."""
    count = len(rows)
    result.pooled[rows] = values.pooled[:count].numpy()
    if result.likelihood is not None and values.likelihood is not None:
        result.likelihood[rows] = values.likelihood[:count].numpy()
    if result.residues is not None and values.residues is not None:
        tokens = values.residues.numpy()
        for row, (first, end) in zip(rows.tolist(), batch.pooled_tokens.tolist(), strict=True):
            result.residues[row] = tokens[first:end]


def _finite(result: StepResult, rows: slice | list[int]) -> np.ndarray:
    """Tell of which of some rows all values are finite; residues show in what is pooled of them."""
    finite: np.ndarray = np.isfinite(result.pooled[rows]).all(axis=(1, 2))
    if result.likelihood is not None:
        finite &= np.isfinite(result.likelihood[rows])
    return finite
