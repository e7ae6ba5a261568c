"""Runs packed batches through the model and gives one vector a sequence.

`Engine.stream` takes what the collator gives and returns pooled representations. A step that does
not fit into memory is packed again at half the tokens and repeated; a row that is not finite is
computed again alone in float32. Both are reported, neither loses a sequence.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from virnucpro.embed.graph import StepGraph, pooled_layers
from virnucpro.embed.step import Step, StepShape
from virnucpro.model.esm2 import PackedESM2
from virnucpro.plan.first_fit import first_fit_decreasing

__all__ = ["Engine", "Failure", "StepResult"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Failure:
    """A sequence without an embedding: its place in the batch, the reason and what was seen."""

    index: int
    reason: str
    detail: str


@dataclass
class StepResult:
    """What came out of one batch.

    Attributes:
        pooled: [B, layers, dim] float32 on the CPU, NaN for failed sequences.
        failures: the sequences without an embedding.
        splits: how often the batch was repeated at half its tokens.
        recomputed: how many rows were computed again in float32.
    """

    pooled: np.ndarray
    failures: list[Failure] = field(default_factory=list)
    splits: int = 0
    recomputed: int = 0


class _Launched:
    """A result on its way from the device.

    Args:
        pooled: [sequences, layers, dim] float32 on the device; may be overwritten by later steps,
            which are behind the copy in the device's queue.
    """

    def __init__(self, pooled: Tensor) -> None:
        self._done: torch.cuda.Event | None = None
        self._pooled = pooled
        if pooled.is_cuda:
            self._pooled = torch.empty(pooled.shape, dtype=pooled.dtype, pin_memory=True)
            self._pooled.copy_(pooled, non_blocking=True)
            self._done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._done.record()

    def result(self) -> np.ndarray:
        """Wait for the copy; [sequences, layers, dim] float32."""
        if self._done is not None:
            self._done.synchronize()
        return self._pooled.numpy()


class Engine:
    """A model, ready for steps of one shape.

    Args:
        model: the packed model on its device.
        shape: the shape of every step.
        layers: representations to pool, as resolved (1 is the first layer).
        exact_model: gives the same model in float32, called at most once, when a row is not
            finite; `None` when the model is float32 already.
    """

    def __init__(
        self,
        model: PackedESM2,
        shape: StepShape,
        layers: Sequence[int],
        exact_model: Callable[[], PackedESM2] | None = None,
    ) -> None:
        self.model = model
        self.shape = shape
        self.layers = list(layers)
        self._make_exact = exact_model
        self._exact: PackedESM2 | None = None
        self._graph: StepGraph | None = None

    def embed(self, batch: dict[str, Any]) -> StepResult:
        """Embed one packed batch.

        Args:
            batch: what `VarlenCollator` gives, of at most the shape's tokens.

        Raises:
            RuntimeError: the device failed in a way that is not lack of memory; the process
                should end, for a CUDA context does not recover.
        """
        return next(self.stream([batch]))[1]

    def stream(
        self, batches: Iterable[dict[str, Any]]
    ) -> Iterator[tuple[dict[str, Any], StepResult]]:
        """Embed batches one after the other, the device working on one while the next is made.

        Args:
            batches: what `VarlenCollator` gives.

        Yields:
            Each batch with its result, in the order given.

        Raises:
            RuntimeError: as `embed`.
        """
        waiting: tuple[dict[str, Any], _Launched | str] | None = None
        for batch in batches:
            launched = self._launch(Step.from_batch(batch, self.shape), self.shape)
            if waiting is not None:
                yield waiting[0], self._finish(*waiting)
            waiting = batch, launched
            if self.model.device.type == "cpu":  # the step is done: its time is its own
                yield batch, self._finish(batch, launched)
                waiting = None
        if waiting is not None:
            yield waiting[0], self._finish(*waiting)

    @torch.inference_mode()
    def forward(self, step: Step, shape: StepShape, model: PackedESM2 | None = None) -> Tensor:
        """Start one step; [sequences, layers, dim] float32 on the device, for the next step only.

        Steps of the run's shape are replayed from a CUDA graph where the device has them.
        """
        model = model or self.model
        if shape == self.shape and model is self.model and model.attend.on_device:
            if self._graph is None:
                self._graph = StepGraph(model, step, shape.max_seqlen, self.layers)
            return self._graph(step)[: step.sequences]
        segments = model.prepare(step.positions, step.cu_seqlens, shape.max_seqlen)
        tokens = step.tokens.to(model.device, non_blocking=True)
        bounds = step.cu_seqlens.to(model.device, non_blocking=True)
        return pooled_layers(model, tokens, segments, bounds, self.layers)[: step.sequences]

    def _launch(self, step: Step, shape: StepShape) -> _Launched | str:
        """Start a step and the copy of its result, or say why the memory did not suffice."""
        try:
            return _Launched(self.forward(step, shape))
        except torch.cuda.OutOfMemoryError as error:
            return str(error).splitlines()[0]

    def _finish(self, batch: dict[str, Any], launched: _Launched | str) -> StepResult:
        """Wait for a step and mend what failed in it."""
        count = int(batch["num_sequences"])
        result = StepResult(
            np.full((count, len(self.layers), self.model.config.dim), np.nan, dtype=np.float32)
        )
        self._take(result, batch, np.arange(count), self.shape, launched)
        self._mend_rows(result, batch)
        return result

    def _take(
        self,
        result: StepResult,
        batch: dict[str, Any],
        rows: np.ndarray,
        shape: StepShape,
        launched: _Launched | str,
    ) -> None:
        """Put a step's rows in their place; one out of memory is repeated in smaller steps."""
        if isinstance(launched, _Launched):
            result.pooled[rows] = launched.result()
            return
        torch.cuda.empty_cache()
        longest = int(batch["cu_seqlens"].diff().max())
        if shape.tokens == longest:  # nothing else is in the step
            result.failures.append(Failure(int(rows[0]), "out_of_memory", launched))
            logger.error("out of memory on one sequence, quarantined: %s", launched)
            return
        half = max(shape.tokens // 2, longest)
        result.splits += 1
        logger.warning(
            "out of memory at %d tokens, repeating at %d: %s", shape.tokens, half, launched
        )
        smaller = StepShape.for_lengths(half, len(rows), shape.max_seqlen)
        for part in _halves(batch, half):
            some = _select(batch, part)
            again = self._launch(Step.from_batch(some, smaller), smaller)
            self._take(result, some, rows[part], smaller, again)

    def _mend_rows(self, result: StepResult, batch: dict[str, Any]) -> None:
        """Compute rows that are not finite again, alone and in float32."""
        failed = {failure.index for failure in result.failures}
        finite = np.isfinite(result.pooled).all(axis=(1, 2))
        for row in np.flatnonzero(~finite).tolist():
            if row in failed:
                continue
            pooled = self._exactly(_select(batch, np.array([row])))
            if pooled is not None:
                result.recomputed += 1
                result.pooled[row] = pooled
            if pooled is None or not np.isfinite(pooled).all():
                result.pooled[row] = np.nan
                result.failures.append(
                    Failure(row, "not_finite", "NaN or infinity, in float32 too")
                )

    def _exactly(self, batch: dict[str, Any]) -> np.ndarray | None:
        """Embed one sequence in float32, or give None where the model is float32 already."""
        if self._make_exact is None:
            return None
        if self._exact is None:
            logger.warning("a row is not finite: computing such rows again in float32")
            self._exact = self._make_exact()
        tokens = len(batch["input_ids"])
        shape = StepShape(tokens, 1, max(tokens, 1))
        pooled = self.forward(Step.from_batch(batch, shape), shape, self._exact)
        return np.asarray(_Launched(pooled).result()[0])


def _halves(batch: dict[str, Any], budget: int) -> list[np.ndarray]:
    """Pack a batch's sequences again at a smaller budget; gives indices into the batch."""
    tokens = np.diff(batch["cu_seqlens"].numpy()).astype(np.int64)
    order, bins = first_fit_decreasing(tokens, budget)
    return np.split(order, np.flatnonzero(np.diff(bins)) + 1)


def _select(batch: dict[str, Any], index: np.ndarray) -> dict[str, Any]:
    """Make a batch of some of a batch's sequences, in the order of `index`."""
    bounds = batch["cu_seqlens"].numpy()
    spans = [slice(int(bounds[i]), int(bounds[i + 1])) for i in index]
    cu_seqlens = np.concatenate([[0], np.cumsum([s.stop - s.start for s in spans])])
    return {
        "input_ids": torch.cat([batch["input_ids"][s] for s in spans]),
        "position_ids": torch.cat([batch["position_ids"][s] for s in spans]),
        "cu_seqlens": torch.from_numpy(cu_seqlens.astype(np.int32)),
        "num_sequences": len(index),
    }
