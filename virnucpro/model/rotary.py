"""Rotary positions (Su et al. 2021, arXiv:2104.09864): tables of angles, and their application."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["RotaryTables", "interleaved", "inverse_frequencies", "rotate", "token_angles"]

_BASE = 10000.0


def inverse_frequencies(head_dim: int) -> Tensor:
    """Return the frequencies of fair-esm's initialisation, [head_dim / 2] float32.

    The published weights carry their own, which may have been rounded to 16 bits in training.
    """
    exponent = torch.arange(0, head_dim, 2, dtype=torch.float32, device="cpu") / head_dim
    return 1.0 / (_BASE**exponent)


class RotaryTables:
    """Cosines and sines of every position, made once for the longest sequence so far.

    Angles are computed in float32 whatever the model's dtype: in 16 bits, neighbouring positions
    beyond a few hundred would share an angle.

    Args:
        inv_freq: [head_dim / 2] float32 on the model's device.
    """

    def __init__(self, inv_freq: Tensor) -> None:
        self._inv_freq = inv_freq
        self._tables = (inv_freq.new_empty(0, len(inv_freq)),) * 2

    def tables(self, positions: int) -> tuple[Tensor, Tensor]:
        """Return cosines and sines, [positions or more, head_dim / 2] float32 each."""
        if len(self._tables[0]) < positions:
            index = torch.arange(positions, dtype=torch.float32, device=self._inv_freq.device)
            angle = torch.outer(index, self._inv_freq)
            self._tables = (angle.cos(), angle.sin())
        return self._tables


def interleaved(rows: Tensor, heads: int) -> Tensor:
    """Put the two dimensions that are rotated together side by side, in the weights of a layer.

    fair-esm has them half a head apart. Scores do not change when queries and keys are put into
    another order alike, and pairs side by side are complex numbers, which one multiplication
    rotates.

    Args:
        rows: [H * D, ...] weight or bias of queries or keys, as in fair-esm.
        heads: H.
    """
    return rows.view(heads, 2, -1, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


def token_angles(positions: Tensor, tables: tuple[Tensor, Tensor], heads: int) -> Tensor:
    """Return each token's rotations, [T, 1, H * D/2] complex64, the same for all heads."""
    index = positions.to(tables[0].device, non_blocking=True).long()
    return torch.complex(*tables)[index].repeat(1, heads).unsqueeze(1)


def rotate(qkv: Tensor, angles: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Split qkv [T, 3, H, D] and rotate the interleaved pairs of q and k, in float32."""
    T, _, H, D = qkv.shape
    pairs = torch.view_as_complex(qkv[:, :2].float().reshape(T, 2, H * D // 2, 2))
    rotated = torch.view_as_real(pairs * angles).view(T, 2, H, D)
    q, k = rotated.to(qkv.dtype).unbind(1)
    return q, k, qkv[:, 2]
