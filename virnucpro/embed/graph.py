"""A step captured once as a CUDA graph and replayed for every batch.

All steps of a run have one shape, so the kernels of a step are the same every time: replaying them
costs one launch in place of some hundred, which is most of the time of a small model.
"""

from __future__ import annotations

import torch
from torch import Tensor

from virnucpro.embed.readout import Readout, StepValues
from virnucpro.embed.step import Step
from virnucpro.model.esm2 import PackedESM2

__all__ = ["StepGraph"]


class StepGraph:
    """The captured step of one shape.

    Args:
        model: on a CUDA device, with an attention backend that works on the device alone.
        step: any step of the shape; its content is run while capturing.
        max_seqlen: the longest sequence of the shape, in tokens.
        readout: what is read out of it.

    Raises:
        torch.cuda.OutOfMemoryError: the device cannot hold a step of this shape.
    """

    def __init__(self, model: PackedESM2, step: Step, max_seqlen: int, readout: Readout) -> None:
        self.model = model
        self.max_seqlen = max_seqlen
        self.tokens = step.tokens.to(model.device)
        self.bounds = step.cu_seqlens.to(model.device)
        self.ranges = step.ranges.to(model.device)
        self.segments = model.prepare(step.positions, step.cu_seqlens, max_seqlen)
        self.graph = torch.cuda.CUDAGraph()

        def run() -> StepValues:
            return readout(model, self.tokens, self.segments, self.bounds, self.ranges)

        warm_up = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        warm_up.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(warm_up):  # libraries set themselves up at their first call
            run()
        torch.cuda.current_stream().wait_stream(warm_up)
        torch.cuda.empty_cache()  # a graph's memory is its own: it cannot use what is cached
        with torch.cuda.graph(self.graph):
            self.values = run()

    def __call__(self, step: Step) -> StepValues:
        """Run a step; the values are overwritten by the next one."""
        self.tokens.copy_(step.tokens, non_blocking=True)
        self.bounds.copy_(step.cu_seqlens, non_blocking=True)
        self.ranges.copy_(step.ranges, non_blocking=True)
        fresh = self.model.prepare(step.positions, step.cu_seqlens, self.max_seqlen)
        for captured, given in zip(self.segments, fresh, strict=True):
            if isinstance(captured, Tensor) and captured is not given:
                captured.copy_(given, non_blocking=True)
        self.graph.replay()
        return self.values
