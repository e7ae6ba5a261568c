"""Attention over packed sequences, behind one interface.

An implementation turns the bounds of a step's sequences into what its kernel needs, once a step
(`Attention.prepare`), and attends within the sequences in every layer, rotary positions included.
None lets a token see another sequence, and none computes on padding.
"""

from __future__ import annotations

import itertools
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from virnucpro.model import kernels
from virnucpro.model.rotary import rotate, token_angles

__all__ = ["Attention", "Segments", "SequenceAttention", "TileAttention", "VarlenAttention"]

Segments = tuple[Any, ...]
"""What an implementation knows of a step's sequences: tensors on the device, in a fixed order, and
constants of the step's shape. A replayed graph copies the tensors and keeps the constants."""


class Attention(Protocol):
    """What the model asks of an implementation.

    Attributes:
        name: as in logs and receipts.
        on_device: whether a call is work of the device alone, so that a CUDA graph can hold it.
        interleaved_rotary: whether queries and keys come as `virnucpro.model.rotary.interleaved`
            puts them, and not as in fair-esm.
    """

    name: str
    on_device: bool
    interleaved_rotary: bool

    def prepare(
        self,
        positions: Tensor,
        cu_seqlens: Tensor,
        max_seqlen: int,
        rotary: tuple[Tensor, Tensor],
        heads: int,
    ) -> Segments:
        """Describe a step's sequences, on the device of `rotary`.

        Args:
            positions: [T] integer, restarting at 0 in each sequence.
            cu_seqlens: [B+1] int32, from 0 to T, on any device.
            max_seqlen: an upper bound of the lengths, in tokens.
            rotary: cosines and sines, [max_seqlen or more, D/2] float32.
            heads: H.
        """

    def __call__(self, qkv: Tensor, segments: Segments) -> Tensor:
        """Attend: qkv [T, 3, H, D], not rotated; returns [T, H * D]."""


class SequenceAttention:
    """One scaled-dot-product call a sequence: any device, any dtype."""

    name = "sdpa"
    on_device = False
    interleaved_rotary = True

    def prepare(
        self,
        positions: Tensor,
        cu_seqlens: Tensor,
        max_seqlen: int,
        rotary: tuple[Tensor, Tensor],
        heads: int,
    ) -> Segments:
        """Return the angles of every token, and the range of every sequence that is not empty."""
        bounds = itertools.pairwise(cu_seqlens.tolist())
        return token_angles(positions, rotary, heads), [(a, b) for a, b in bounds if b > a]

    def __call__(self, qkv: Tensor, segments: Segments) -> Tensor:
        """Attend within each sequence; see `Attention`."""
        angles, ranges = segments
        q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in rotate(qkv, angles))  # [1, H, T, D]
        parts = [
            F.scaled_dot_product_attention(q[:, :, a:b], k[:, :, a:b], v[:, :, a:b])
            for a, b in ranges
        ]
        return torch.cat([part.transpose(1, 2) for part in parts], dim=1).flatten(2).squeeze(0)


class VarlenAttention:
    """torch's variable-length FlashAttention: CUDA, float16 and bfloat16."""

    name = "varlen"
    on_device = True
    interleaved_rotary = True

    def prepare(
        self,
        positions: Tensor,
        cu_seqlens: Tensor,
        max_seqlen: int,
        rotary: tuple[Tensor, Tensor],
        heads: int,
    ) -> Segments:
        """Return the angles of every token, and the bounds: the kernel reads them on the device."""
        device = rotary[0].device
        angles = token_angles(positions, rotary, heads)
        return angles, cu_seqlens.to(device, non_blocking=True), max_seqlen

    def __call__(self, qkv: Tensor, segments: Segments) -> Tensor:
        """Attend within each sequence; see `Attention`."""
        from torch.nn.attention.varlen import varlen_attn

        angles, bounds, longest = segments
        q, k, v = rotate(qkv, angles)
        out = varlen_attn(
            q.contiguous(), k.contiguous(), v.contiguous(), bounds, bounds, longest, longest
        )
        assert isinstance(out, Tensor)  # noqa: S101 - a pair only where it is asked for
        return out.flatten(1)


class TileAttention:
    """Our kernel over the exact list of (sequence, query block) tiles: CUDA, Triton, 16 bits."""

    name = "tiles"
    on_device = True
    interleaved_rotary = False

    def prepare(
        self,
        positions: Tensor,
        cu_seqlens: Tensor,
        max_seqlen: int,
        rotary: tuple[Tensor, Tensor],
        heads: int,
    ) -> Segments:
        """Return the tables of angles and the tiles; the kernel knows the positions by itself."""
        block = kernels.QUERY_BLOCK
        capacity = kernels.tile_capacity(len(positions), len(cu_seqlens) - 1, block)
        tiles = kernels.attention_tiles(cu_seqlens.cpu().numpy(), block, capacity)
        host = torch.from_numpy(tiles).pin_memory()
        return *rotary, host.to(rotary[0].device, non_blocking=True)

    def __call__(self, qkv: Tensor, segments: Segments) -> Tensor:
        """Attend within each sequence; see `Attention`."""
        from virnucpro.model.kernels.attention import packed_attention

        return packed_attention(qkv, *segments)
