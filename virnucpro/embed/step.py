"""The fixed shape of a step: T tokens exactly, whatever was packed.

A matrix product's rounding depends on its shape. With every step of a run at one shape, a row's
arithmetic is the same wherever the row stands and whatever surrounds it; this is what makes a
sequence's bits independent of its neighbours. The tail of a step is filled with filler sequences
that are computed and thrown away.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from virnucpro.embed.batch import PackedBatch

__all__ = ["Step", "StepShape"]

_FILLER_TOKEN = 1  # padding: never part of a real sequence


@dataclass(frozen=True)
class StepShape:
    """What all steps of a run have in common.

    Attributes:
        tokens: T, tokens a step computes, filler included.
        max_sequences: most sequences a step can hold, filler included.
        max_seqlen: the longest sequence, in tokens.
    """

    tokens: int
    max_sequences: int
    max_seqlen: int

    @classmethod
    def for_lengths(cls, tokens: int, max_batch: int, max_seqlen: int) -> StepShape:
        """Return a shape with room for `max_batch` sequences and a tail of filler."""
        return cls(tokens, max_batch + -(-tokens // max_seqlen), max_seqlen)


@dataclass(frozen=True)
class Step:
    """One step's tensors.

    Attributes:
        tokens: [T] int64.
        positions: [T] int32, restarting at 0 in each sequence.
        cu_seqlens: [max_sequences + 1] int32; the entries behind the filler repeat T.
        ranges: [max_sequences, 2] int32, the tokens that are pooled of each sequence, of the filler
            none.
        sequences: how many of the segments are real; they come first.
    """

    tokens: Tensor
    positions: Tensor
    cu_seqlens: Tensor
    ranges: Tensor
    sequences: int

    @classmethod
    def from_batch(cls, batch: PackedBatch, shape: StepShape) -> Step:
        """Fill a batch up to the shape of the run.

        Args:
            batch: of at most the shape's tokens.
            shape: the run's shape.

        Raises:
            ValueError: the batch does not fit the shape.
        """
        used, count = len(batch.tokens), batch.sequences
        bounds = np.full(shape.max_sequences + 1, shape.tokens, dtype=np.int32)
        filler = np.arange(used, shape.tokens, shape.max_seqlen, dtype=np.int32)
        if used > shape.tokens or count + len(filler) > shape.max_sequences:
            raise ValueError(
                f"a batch of {count} sequences and {used} tokens does not fit steps of "
                f"{shape.tokens} tokens and {shape.max_sequences} sequences"
            )
        bounds[: count + 1] = batch.cu_seqlens.numpy()
        bounds[count : count + len(filler)] = filler
        ranges = np.full((shape.max_sequences, 2), shape.tokens, dtype=np.int32)
        ranges[:count] = batch.pooled_tokens
        tokens = torch.full((shape.tokens,), _FILLER_TOKEN, dtype=torch.int64)
        tokens[:used] = batch.tokens
        positions = torch.zeros(shape.tokens, dtype=torch.int32)
        positions[:used] = batch.positions
        step = cls(tokens, positions, torch.from_numpy(bounds), torch.from_numpy(ranges), count)
        return step.pinned() if torch.cuda.is_available() else step

    def pinned(self) -> Step:
        """Return the same step in pinned memory, from which a device copies without waiting."""
        return Step(
            self.tokens.pin_memory(),
            self.positions.pin_memory(),
            self.cu_seqlens.pin_memory(),
            self.ranges.pin_memory(),
            self.sequences,
        )
