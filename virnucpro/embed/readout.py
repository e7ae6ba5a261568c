"""What is read out of a step: pooled layers, and on request likelihoods and single residues."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from virnucpro.model.attention import Segments
from virnucpro.model.esm2 import PackedESM2
from virnucpro.model.kernels import reference

__all__ = ["Readout", "StepValues"]


class StepValues(NamedTuple):
    """What was read out of one step, on the device.

    Attributes:
        pooled: [B, layers, dim] float32.
        likelihood: [B] float32, the mean natural logarithm of the probability that the model gives
            to each residue; None where it was not asked for.
        residues: [T, layers, dim] representations of all tokens; None where not asked for.
    """

    pooled: Tensor
    likelihood: Tensor | None = None
    residues: Tensor | None = None


@dataclass(frozen=True)
class Readout:
    """What is read out of every step of a run.

    Attributes:
        layers: as resolved (1 is the first layer).
        pooling: one of `virnucpro.formats.POOLINGS`.
        residues: the dtype in which the representations of residues are kept; None to drop them.
        likelihood: whether the likelihood of the residues is computed; the model has its head then.
    """

    layers: Sequence[int]
    pooling: str = "mean"
    residues: torch.dtype | None = None
    likelihood: bool = False

    def facts(self) -> dict[str, Any]:
        """Return what it is, as values that JSON has."""
        residues = None if self.residues is None else str(self.residues).removeprefix("torch.")
        return {
            "layers": list(self.layers),
            "pooling": self.pooling,
            "residues": residues,
            "likelihood": self.likelihood,
        }

    def __call__(
        self,
        model: PackedESM2,
        tokens: Tensor,
        segments: Segments,
        bounds: Tensor,
        ranges: Tensor,
    ) -> StepValues:
        """Run a model on a step and read it out.

        Args:
            model: the packed model.
            tokens: [T] int64 on its device.
            segments: of `PackedESM2.prepare`.
            bounds: [B+1] int32, the sequences in tokens, on the same device.
            ranges: [B, 2] int32, the tokens that are pooled of each sequence, on the same device.
        """
        last = model.config.layers
        found = model.run(tokens, segments, [*self.layers, *([last] if self.likelihood else [])])
        hidden = [found[layer] for layer in self.layers]
        likelihood = residues = None
        if self.likelihood:
            each = model.log_likelihood(found[last], tokens)
            likelihood = model.backend.kernels.pool_mean(each[:, None], ranges)[:, 0]
        if self.residues is not None:
            # What is written is what is pooled: a value that does not fit shows in the mean.
            hidden = [layer.to(self.residues) for layer in hidden]
            residues = torch.stack(hidden, dim=1)
        pooled = [self._pool(model, layer, bounds, ranges) for layer in hidden]
        return StepValues(torch.stack(pooled, dim=1), likelihood, residues)

    def _pool(self, model: PackedESM2, hidden: Tensor, bounds: Tensor, ranges: Tensor) -> Tensor:
        """Pool one layer, [B, dim] float32."""
        if self.pooling == "cls":
            # Behind the last sequence the bounds repeat T.
            first = bounds[:-1].long().clamp(max=len(hidden) - 1)
            return hidden.index_select(0, first).float()
        if self.pooling == "max":
            return reference.pool_max(hidden, ranges)
        pooled: Tensor = model.backend.kernels.pool_mean(hidden, ranges)
        return pooled
