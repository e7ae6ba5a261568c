"""How close a model in a coarse number format is to float32, on the user's own sequences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from virnucpro.embed.exact import ExactModel
from virnucpro.embed.readout import token_ranges
from virnucpro.model.esm2 import PackedESM2
from virnucpro.model.kernels import reference

__all__ = ["SAMPLE", "closeness_to_float32"]

SAMPLE = 16
"""Sequences that are compared, spread evenly over a shard's plan."""


@torch.inference_mode()
def closeness_to_float32(
    model: PackedESM2,
    exact_model: ExactModel,
    batches: Sequence[dict[str, Any]],
    layers: Sequence[int],
) -> dict[str, Any] | None:
    """Compare representations with those of the same weights in float32.

    Args:
        model: the model in use.
        exact_model: the same model in float32.
        batches: what `VarlenCollator` gives, of few sequences each.
        layers: as resolved; the worst of them counts.

    Returns:
        The number of ``sequences``, and the cosine to float32, least and median, of the pooled
        representations and of those of the residues; None where there is no memory for float32.
    """
    ours = [_representations(model, batch, layers) for batch in batches]
    theirs = exact_model.run(
        lambda exact: [_representations(exact, batch, layers) for batch in batches]
    )
    if theirs is None:
        return None
    found: dict[str, Any] = {"sequences": sum(int(batch["num_sequences"]) for batch in batches)}
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
    model: PackedESM2, batch: dict[str, Any], layers: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Give what is pooled [layers, B, dim] and what belongs to residues [layers, n, dim]."""
    given = (batch[key] for key in ("input_ids", "position_ids", "cu_seqlens", "max_seqlen"))
    hidden = model(*given, layers)
    bounds = batch["cu_seqlens"].to(model.device)
    ranges = torch.from_numpy(token_ranges(batch)).to(model.device)
    residue = torch.ones(len(batch["input_ids"]), dtype=torch.bool, device=model.device)
    residue[bounds[:-1].long()] = residue[bounds[1:].long() - 1] = False
    kept = [hidden[layer].float() for layer in layers]
    pooled = torch.stack([reference.pool_mean(h, ranges) for h in kept])
    return pooled.double(), torch.stack([h[residue] for h in kept]).double()
