"""How close a model in a coarse number format is to float32, on the user's own sequences."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from virnucpro.embed.batch import PackedBatch
from virnucpro.embed.exact import ExactModel, is_out_of_memory
from virnucpro.model.esm2 import PackedESM2
from virnucpro.model.kernels import reference

__all__ = ["SAMPLE", "closeness_to_float32"]

SAMPLE = 16
"""Sequences that are compared, spread evenly over a shard's plan."""


@torch.inference_mode()
def closeness_to_float32(
    model: PackedESM2,
    exact_model: ExactModel,
    batches: Sequence[PackedBatch],
    layers: Sequence[int],
) -> dict[str, float] | None:
    """Compare representations with those of the same weights in float32.

    Args:
        model: the model in use.
        exact_model: the same model in float32.
        batches: of few sequences each.
        layers: as resolved; the worst of them counts.

    Returns:
        The number of ``sequences``, and the cosine to float32, least and median, of the pooled
        representations and of those of the residues; None where there is no memory for float32.
    """

    def represent(by: PackedESM2) -> list[tuple[Tensor, Tensor]]:
        return [_representations(by, batch, layers) for batch in batches]

    try:
        ours = represent(model)
    except (torch.cuda.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return None
    theirs = exact_model.run(represent)
    if theirs is None:
        return None
    found: dict[str, float] = {"sequences": sum(batch.sequences for batch in batches)}
    for place, name in enumerate(("pooled_cosine", "residue_cosine")):
        cosines = np.concatenate(
            [
                F.cosine_similarity(mine[place].cpu(), other[place].cpu(), dim=-1)
                .amin(dim=0)
                .numpy()
                for mine, other in zip(ours, theirs, strict=True)
            ]
        )
        found[f"{name}_min"] = round(float(cosines.min(initial=1.0)), 6)
        found[f"{name}_median"] = round(float(np.median(cosines)), 6) if len(cosines) else 1.0
    return found


def _representations(
    model: PackedESM2, batch: PackedBatch, layers: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Give what is pooled [layers, B, dim] and what belongs to residues [layers, n, dim]."""
    longest = int(batch.lengths.max())
    hidden = model(batch.tokens, batch.positions, batch.cu_seqlens, longest, layers)
    bounds = batch.cu_seqlens.to(model.device)
    ranges = torch.from_numpy(batch.pooled_tokens).to(model.device)
    residue = torch.ones(len(batch.tokens), dtype=torch.bool, device=model.device)
    residue[bounds[:-1].long()] = residue[bounds[1:].long() - 1] = False
    found = [hidden[layer].float() for layer in layers]
    pooled = torch.stack([reference.pool_mean(h, ranges) for h in found])
    return pooled.double(), torch.stack([h[residue] for h in found]).double()
