"""Attention over packed sequences, behind one interface.

A backend turns the bounds of a step's sequences into what its kernel needs, once a step
(`Backend.prepare`), and attends within the sequences in every layer, rotary positions included. No
backend lets a token see another sequence, and none computes on padding.
"""

from __future__ import annotations

import itertools
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from virnucpro.errors import InputError
from virnucpro.model import kernels

__all__ = [
    "Backend",
    "SequenceAttention",
    "TileAttention",
    "VarlenAttention",
    "paired",
    "select_attention",
]


class Backend(Protocol):
    """What the model asks of an attention backend.

    Attributes:
        name: as in logs and receipts.
        on_device: whether a call is work of the device alone, so that a CUDA graph can hold it.
        paired: whether the two dimensions that are rotated together stand side by side in each
            head of queries and keys, and not half a head apart as in fair-esm (see `paired`).
    """

    name: str
    on_device: bool
    paired: bool

    def prepare(
        self,
        positions: Tensor,
        cu_seqlens: Tensor,
        max_seqlen: int,
        rotary: tuple[Tensor, Tensor],
        heads: int,
    ) -> tuple[Any, ...]:
        """Describe a step's sequences, on the device of `rotary`.

        Args:
            positions: [T] integer, restarting at 0 in each sequence.
            cu_seqlens: [B+1] int32, from 0 to T, on any device.
            max_seqlen: an upper bound of the lengths, in tokens.
            rotary: cosines and sines, [max_seqlen or more, D/2] float32.
            heads: H.
        """

    def __call__(self, qkv: Tensor, segments: tuple[Any, ...]) -> Tensor:
        """Attend: qkv [T, 3, H, D], not rotated; returns [T, H * D]."""


class SequenceAttention:
    """One scaled-dot-product call a sequence: any device, any dtype."""

    name = "sdpa"
    on_device = False
    paired = True

    def prepare(
        self,
        positions: Tensor,
        cu_seqlens: Tensor,
        max_seqlen: int,
        rotary: tuple[Tensor, Tensor],
        heads: int,
    ) -> tuple[Any, ...]:
        """Give the angles of every token, and the range of every sequence that is not empty."""
        bounds = itertools.pairwise(cu_seqlens.tolist())
        return _angles(positions, rotary, heads), [(a, b) for a, b in bounds if b > a]

    def __call__(self, qkv: Tensor, segments: tuple[Any, ...]) -> Tensor:
        """Attend within each sequence; see `Backend`."""
        angles, ranges = segments
        q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in _rotated(qkv, angles))  # [1, H, T, D]
        parts = [
            F.scaled_dot_product_attention(q[:, :, a:b], k[:, :, a:b], v[:, :, a:b])
            for a, b in ranges
        ]
        return torch.cat([part.transpose(1, 2) for part in parts], dim=1).flatten(2).squeeze(0)


class VarlenAttention:
    """torch's variable-length FlashAttention: CUDA, float16 and bfloat16."""

    name = "varlen"
    on_device = True
    paired = True

    def prepare(
        self,
        positions: Tensor,
        cu_seqlens: Tensor,
        max_seqlen: int,
        rotary: tuple[Tensor, Tensor],
        heads: int,
    ) -> tuple[Any, ...]:
        """Give the angles of every token, and the bounds: the kernel reads them on the device."""
        device = rotary[0].device
        angles = _angles(positions, rotary, heads)
        return angles, cu_seqlens.to(device, non_blocking=True), max_seqlen

    def __call__(self, qkv: Tensor, segments: tuple[Any, ...]) -> Tensor:
        """Attend within each sequence; see `Backend`."""
        from torch.nn.attention.varlen import varlen_attn

        angles, bounds, longest = segments
        q, k, v = _rotated(qkv, angles)
        out = varlen_attn(
            q.contiguous(), k.contiguous(), v.contiguous(), bounds, bounds, longest, longest
        )
        assert isinstance(out, Tensor)  # noqa: S101 - a pair only where it is asked for
        return out.flatten(1)


class TileAttention:
    """Our kernel over the exact list of (sequence, query block) tiles: CUDA, Triton, 16 bits."""

    name = "tiles"
    on_device = True
    paired = False

    def prepare(
        self,
        positions: Tensor,
        cu_seqlens: Tensor,
        max_seqlen: int,
        rotary: tuple[Tensor, Tensor],
        heads: int,
    ) -> tuple[Any, ...]:
        """Give the tables of angles and the tiles; the kernel knows the positions by itself."""
        block = kernels.QUERY_BLOCK
        capacity = kernels.tile_capacity(len(positions), len(cu_seqlens) - 1, block)
        tiles = kernels.attention_tiles(cu_seqlens.cpu().numpy(), block, capacity)
        host = torch.from_numpy(tiles).pin_memory()
        return *rotary, host.to(rotary[0].device, non_blocking=True)

    def __call__(self, qkv: Tensor, segments: tuple[Any, ...]) -> Tensor:
        """Attend within each sequence; see `Backend`."""
        from virnucpro.model.kernels.attention import packed_attention

        return packed_attention(qkv, *segments)


_BACKENDS: dict[str, type[Backend]] = {
    "sdpa": SequenceAttention,
    "varlen": VarlenAttention,
    "tiles": TileAttention,
}


def select_attention(name: str, device: torch.device, dtype: torch.dtype) -> tuple[Backend, str]:
    """Choose the attention backend of a device and a dtype.

    Args:
        name: ``auto``, ``sdpa``, ``varlen`` or ``tiles``.
        device: where the model runs.
        dtype: what it computes in.

    Returns:
        The backend and the reason for it.

    Raises:
        InputError: the backend does not exist, or not for this device and dtype.
    """
    usable = _usable(device, dtype)
    if name == "auto":
        best = next(backend for backend in ("tiles", "varlen", "sdpa") if backend in usable)
        return _BACKENDS[best](), usable[best]
    if name not in _BACKENDS:
        raise InputError(
            f"unknown attention backend {name!r}", hint=f"auto, {', '.join(_BACKENDS)}"
        )
    if name not in usable:
        raise InputError(
            f"attention backend {name!r} cannot run {dtype} on {device}",
            hint=f"here {', '.join(usable)} can; others need CUDA, 16 bits and, for tiles, triton",
        )
    return _BACKENDS[name](), "asked for"


def _usable(device: torch.device, dtype: torch.dtype) -> dict[str, str]:
    """Say which backends can run, and why."""
    usable = {"sdpa": f"{dtype} on {device}: one call a sequence"}
    if device.type != "cuda" or dtype not in (torch.float16, torch.bfloat16):
        return usable
    if torch.cuda.get_device_capability(device) >= (8, 0):
        usable["varlen"] = "16 bits on a CUDA device: torch's variable-length kernel"
        with torch.cuda.device(device):
            runs, reason = kernels.available()
        if runs:
            usable["tiles"] = f"16 bits on {reason}"
    return usable


def paired(rows: Tensor, heads: int) -> Tensor:
    """Put the two dimensions that are rotated together side by side, in the weights of a layer.

    Scores do not change when queries and keys are put into another order alike, and pairs that
    stand side by side are complex numbers, which one multiplication rotates.

    Args:
        rows: [H * D, ...] weight or bias of queries or keys, as in fair-esm.
        heads: H.
    """
    return rows.view(heads, 2, -1, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


def _angles(positions: Tensor, rotary: tuple[Tensor, Tensor], heads: int) -> Tensor:
    """Give each token's rotations, [T, 1, H * D/2] complex64, the same for all heads."""
    index = positions.to(rotary[0].device, non_blocking=True).long()
    return torch.complex(*rotary)[index].repeat(1, heads).unsqueeze(1)


def _rotated(qkv: Tensor, angles: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Split qkv [T, 3, H, D] and rotate the pairs of q and k, in float32."""
    T, _, H, D = qkv.shape
    pairs = torch.view_as_complex(qkv[:, :2].float().reshape(T, 2, H * D // 2, 2))
    rotated = torch.view_as_real(pairs * angles).view(T, 2, H, D)
    q, k = rotated.to(qkv.dtype).unbind(1)
    return q, k, qkv[:, 2]
