"""From one vector a token to one vector a sequence."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["pool_mean"]


def pool_mean(hidden: Tensor, cu_seqlens: Tensor) -> Tensor:
    """Average over the residues of each sequence, in float32 and in a fixed order.

    BOS and EOS are left out, as in fair-esm's ``scripts/extract.py --include mean``. Each sequence
    is summed from its first residue to its last, so the result does not depend on its neighbours.

    Args:
        hidden: [T, dim], any float dtype.
        cu_seqlens: [B+1] integer bounds of the sequences in tokens, from 0 to T.

    Returns:
        [B, dim] float32; NaN for a segment without residues.
    """
    lengths = torch.diff(cu_seqlens).long()
    # Each sequence is three segments, BOS, residues, EOS; shorter ones lack the later of them.
    bos = lengths.clamp(max=1)
    eos = (lengths - 1).clamp(min=0, max=1)
    segments = torch.stack((bos, lengths - bos - eos, eos), dim=1).flatten()
    pooled = torch.segment_reduce(hidden.float(), "mean", lengths=segments, unsafe=True)
    return pooled[1::3]
