"""A packed batch on its way to the device: what `VarlenCollator` returns, with types."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from virnucpro.plan.first_fit import first_fit_decreasing

__all__ = ["PackedBatch"]


@dataclass(frozen=True)
class PackedBatch:
    """B sequences laid end to end, T tokens in all."""

    tokens: Tensor  # [T] int64, BOS and EOS of each sequence included
    positions: Tensor  # [T] int32, restarting at 0 in each sequence
    cu_seqlens: Tensor  # [B + 1] int32, where sequences start, and T
    # [B, 2]: the residues of each item that are pooled, counted in the item: first, and one past
    # the last (`virnucpro.plan.items.owned_spans`). None for all.
    pooling_spans: NDArray[np.int64] | None = None

    @classmethod
    def from_collated(cls, batch: Mapping[str, Any]) -> Self:
        """Take a batch of `VarlenCollator`."""
        spans = batch.get("pooling_span")
        return cls(
            batch["input_ids"],
            batch["position_ids"],
            batch["cu_seqlens"],
            None if spans is None else np.asarray(spans),
        )

    @property
    def sequences(self) -> int:
        """B."""
        return len(self.cu_seqlens) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each sequence, [B]."""
        return np.diff(self.cu_seqlens.numpy()).astype(np.int64)

    @property
    def pooled_tokens(self) -> NDArray[np.int32]:
        """The tokens of the batch that are pooled, [B, 2]: first, and one past the last."""
        bounds = self.cu_seqlens.numpy()
        first, end = bounds[:-1] + 1, bounds[1:] - 1  # without BOS and EOS
        if self.pooling_spans is not None:
            first, end = first + self.pooling_spans[:, 0], first + self.pooling_spans[:, 1]
        return np.stack([first, end], axis=1).astype(np.int32)

    def select(self, index: NDArray[np.int64]) -> Self:
        """Return a batch of some of the sequences, in the order of `index`."""
        bounds = self.cu_seqlens.numpy()
        spans = [slice(int(bounds[i]), int(bounds[i + 1])) for i in index]
        cu_seqlens = np.concatenate([[0], np.cumsum([s.stop - s.start for s in spans])])
        return type(self)(
            torch.cat([self.tokens[s] for s in spans]),
            torch.cat([self.positions[s] for s in spans]),
            torch.from_numpy(cu_seqlens.astype(np.int32)),
            None if self.pooling_spans is None else self.pooling_spans[index],
        )

    def repacked(self, token_budget: int) -> list[NDArray[np.int64]]:
        """Pack the sequences again at a smaller budget; returns indices into the batch."""
        order, bins = first_fit_decreasing(self.lengths, token_budget)
        return np.split(order, np.flatnonzero(np.diff(bins)) + 1)
