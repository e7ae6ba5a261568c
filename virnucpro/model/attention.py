"""Attention over packed sequences, behind one interface.

A backend turns ``cu_seqlens`` into its own description of the sequences once a step
(`Backend.segments`), and attends within them in every layer. No backend lets a token see another
sequence, and none computes on padding.
"""

from __future__ import annotations

import itertools
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from virnucpro.errors import InputError

__all__ = ["Backend", "SequenceAttention", "VarlenAttention", "select_attention"]


class Backend(Protocol):
    """What the model asks of an attention backend."""

    name: str

    def segments(self, cu_seqlens: Tensor, max_seqlen: int) -> Any:
        """Describe the sequences of a step: ``cu_seqlens`` [B+1] int32, lengths in tokens."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, segments: Any) -> Tensor:
        """Attend: q, k, v [T, H, D], rotary applied; returns [T, H, D]."""


class SequenceAttention:
    """One scaled-dot-product call a sequence: any device, any dtype."""

    name = "sdpa"

    def segments(self, cu_seqlens: Tensor, max_seqlen: int) -> list[tuple[int, int]]:
        """Give the [start, end) token range of every sequence that is not empty."""
        bounds = cu_seqlens.tolist()
        return [(a, b) for a, b in itertools.pairwise(bounds) if b > a]

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, segments: list[tuple[int, int]]) -> Tensor:
        """Attend within each sequence; see `Backend`."""
        q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))  # [1, H, T, D]
        parts = [
            F.scaled_dot_product_attention(q[:, :, a:b], k[:, :, a:b], v[:, :, a:b])
            for a, b in segments
        ]
        return torch.cat(parts, dim=2).squeeze(0).transpose(0, 1)


class VarlenAttention:
    """torch's variable-length FlashAttention: CUDA, float16 and bfloat16."""

    name = "varlen"

    def segments(self, cu_seqlens: Tensor, max_seqlen: int) -> tuple[Tensor, int]:
        """Pass the bounds on: the kernel reads them on the device."""
        return cu_seqlens, max_seqlen

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, segments: tuple[Tensor, int]) -> Tensor:
        """Attend within each sequence; see `Backend`."""
        from torch.nn.attention.varlen import varlen_attn

        cu_seqlens, max_seqlen = segments
        out = varlen_attn(q, k, v.contiguous(), cu_seqlens, cu_seqlens, max_seqlen, max_seqlen)
        assert isinstance(out, Tensor)  # noqa: S101 - a pair only where it is asked for
        return out


def select_attention(name: str, device: torch.device, dtype: torch.dtype) -> tuple[Backend, str]:
    """Choose the attention backend of a device and a dtype.

    Args:
        name: ``auto``, ``sdpa`` or ``varlen``.
        device: where the model runs.
        dtype: what it computes in.

    Returns:
        The backend and the reason for it.

    Raises:
        InputError: the backend does not exist, or not for this device and dtype.
    """
    fast = (
        device.type == "cuda"
        and dtype in (torch.float16, torch.bfloat16)
        and torch.cuda.get_device_capability(device) >= (8, 0)
    )
    if name == "varlen" and not fast:
        raise InputError(
            f"attention backend 'varlen' cannot run {dtype} on {device}",
            hint="it needs a CUDA device of compute capability 8.0 or newer and a 16-bit dtype",
        )
    if name == "varlen" or (name == "auto" and fast):
        return VarlenAttention(), "16 bits on a CUDA device: torch's variable-length kernel"
    if name in ("auto", "sdpa"):
        return SequenceAttention(), f"{dtype} on {device}: one call a sequence"
    raise InputError(f"unknown attention backend {name!r}", hint="auto, sdpa or varlen")
