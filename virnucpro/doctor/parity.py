"""A model on packed sequences against itself on one sequence at a time."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from virnucpro.embed.batch import PackedBatch
from virnucpro.model.esm2 import PackedESM2
from virnucpro.model.trial import Agreement, relative_error

__all__ = ["compare_packed"]

_LENGTHS = (3, 64, 65, 130, 1)  # of the sequences, in tokens: about the edges of tiles
# Layers add up the last places that each of them rounds.
_TOLERANCES = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}


@torch.inference_mode()
def compare_packed(model: PackedESM2) -> Agreement:
    """Compare the last representations, of random residues."""
    generator = torch.Generator().manual_seed(0)
    bounds = np.concatenate([[0], np.cumsum(_LENGTHS)]).astype(np.int32)
    positions = np.arange(bounds[-1]) - np.repeat(bounds[:-1], _LENGTHS)
    batch = PackedBatch(
        torch.randint(4, 24, (int(bounds[-1]),), generator=generator),
        torch.from_numpy(positions.astype(np.int32)),
        torch.from_numpy(bounds),
    )
    packed = _represent(model, batch)
    alone = [_represent(model, batch.select(np.array([row]))) for row in range(batch.sequences)]
    error = relative_error(packed, torch.cat(alone))
    return Agreement("packed against alone", error, _TOLERANCES[model.dtype])


def _represent(model: PackedESM2, batch: PackedBatch) -> Tensor:
    """Return the last representation of every token, [T, dim]."""
    last, longest = model.config.layers, int(batch.lengths.max())
    found: Tensor = model(batch.tokens, batch.positions, batch.cu_seqlens, longest, [last])[last]
    return found
