"""How well a model in a coarse number format agrees with float32, on the user's own sequences."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from virnucpro.embed.batch import PackedBatch
from virnucpro.embed.exact import ExactModel, is_out_of_memory
from virnucpro.embed.receipt import Float32Agreement, Neighbourhood
from virnucpro.model.esm2 import PackedESM2
from virnucpro.model.kernels import reference

__all__ = ["SAMPLE", "agreement_with_float32"]

SAMPLE = 32
"""Sequences that are compared, spread evenly over a shard's plan."""

_FEWEST = 3  # sequences that can change places: each of two is the nearest one of the other


@torch.inference_mode()
def agreement_with_float32(
    model: PackedESM2,
    exact_model: ExactModel,
    batches: Sequence[PackedBatch],
    layers: Sequence[int],
) -> Float32Agreement | None:
    """Compare representations with those of the same weights in float32.

    Args:
        model: the model in use.
        exact_model: the same model in float32.
        batches: of few sequences each, at least one in all, which are each other's neighbours.
        layers: as resolved; the worst of them counts.

    Returns:
        None where there is no memory for float32.
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
    pooled, residues = (torch.cat(parts, dim=1) for parts in zip(*ours, strict=True))
    exact_pooled, exact_residues = (torch.cat(parts, dim=1) for parts in zip(*theirs, strict=True))
    return Float32Agreement(
        pooled.shape[1],
        *_least_and_median(pooled, exact_pooled),
        *_least_and_median(residues, exact_residues),
        _neighbourhood(pooled, exact_pooled),
    )


def _neighbourhood(pooled: Tensor, exact: Tensor) -> Neighbourhood | None:
    """Compare how rows of [layers, n, dim] lie among one another."""
    sequences = pooled.shape[1]
    if sequences < _FEWEST:
        return None
    mean = exact.mean(dim=1, keepdim=True)
    kept = (_nearest(pooled) == _nearest(exact)).double().mean(dim=1)  # [layers]
    return Neighbourhood(
        sequences,
        *_least_and_median(pooled - mean, exact - mean),
        round(float(kept.min()), 6),
    )


def _least_and_median(ours: Tensor, theirs: Tensor) -> tuple[float, float]:
    """Return the least and the median cosine of rows of [layers, n, dim], the worst layer's."""
    cosines = F.cosine_similarity(ours, theirs, dim=-1).amin(dim=0)
    return round(float(cosines.min()), 6), round(float(cosines.quantile(0.5)), 6)


def _nearest(pooled: Tensor) -> Tensor:
    """Return which other sequence is nearest to each one of [layers, n, dim], [layers, n]."""
    unit = F.normalize(pooled, dim=-1)
    cosines = unit @ unit.transpose(1, 2)
    cosines.diagonal(dim1=1, dim2=2).fill_(-torch.inf)
    return cosines.argmax(dim=-1)


def _representations(
    model: PackedESM2, batch: PackedBatch, layers: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Return what is pooled [layers, B, dim] and what is of residues [layers, n, dim], on the CPU.

    The device has no room to spare while the model in float32 stands beside the other one.
    """
    longest = int(batch.lengths.max())
    hidden = model(batch.tokens, batch.positions, batch.cu_seqlens, longest, layers)
    bounds = batch.cu_seqlens.to(model.device)
    ranges = torch.from_numpy(batch.pooled_tokens).to(model.device)
    residue = torch.ones(len(batch.tokens), dtype=torch.bool, device=model.device)
    residue[bounds[:-1].long()] = residue[bounds[1:].long() - 1] = False
    found = [hidden[layer].float() for layer in layers]
    pooled = torch.stack([reference.pool_mean(h, ranges) for h in found])
    return pooled.cpu().double(), torch.stack([h[residue].cpu() for h in found]).double()
