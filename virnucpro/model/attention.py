"""Attention over packed sequences, behind one interface.

An implementation turns the bounds of a step's sequences into what its kernel needs, once a step
(`Attention.prepare`), and attends within the sequences in every layer, rotary positions included.
None lets a token see another sequence, and none but `PaddedAttention` computes on padding.
"""

from __future__ import annotations

import itertools
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from virnucpro.model import kernels
from virnucpro.model.rotary import rotate, token_angles

__all__ = [
    "Attention",
    "PackedSequences",
    "PaddedAttention",
    "Segments",
    "SequenceAttention",
    "TileAttention",
    "VarlenAttention",
]

Segments = tuple[Any, ...]
"""What an implementation knows of a step's sequences: tensors on the device, in a fixed order, and
constants of the step's shape. A replayed graph copies the tensors and keeps the constants."""


@dataclass(frozen=True)
class PackedSequences:
    """The sequences of a step, as the model hands them to an implementation."""

    positions: Tensor  # [T] integer, restarting at 0 in each sequence
    cu_seqlens: Tensor  # [B + 1] int32, from 0 to T, on any device
    max_seqlen: int  # an upper bound of the lengths, in tokens
    rotary: tuple[Tensor, Tensor]  # cosines and sines, [max_seqlen or more, D/2] float32
    heads: int  # H

    @property
    def angles(self) -> Tensor:
        """Each token's rotations, see `token_angles`."""
        return token_angles(self.positions, self.rotary, self.heads)

    @property
    def device(self) -> torch.device:
        """Where attention is computed."""
        return self.rotary[0].device


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

    def prepare(self, sequences: PackedSequences) -> Segments:
        """Describe a step's sequences, on the device of their rotary tables."""

    def __call__(self, qkv: Tensor, segments: Segments) -> Tensor:
        """Attend: qkv [T, 3, H, D], not rotated; returns [T, H * D]."""


class SequenceAttention:
    """One scaled-dot-product call a sequence: any device, any dtype."""

    name = "sdpa"
    on_device = False
    interleaved_rotary = True

    def prepare(self, sequences: PackedSequences) -> Segments:
        """Return the angles of every token, and the range of every sequence that is not empty."""
        bounds = itertools.pairwise(sequences.cu_seqlens.tolist())
        return sequences.angles, [(a, b) for a, b in bounds if b > a]

    def __call__(self, qkv: Tensor, segments: Segments) -> Tensor:
        """Attend within each sequence; see `Attention`."""
        angles, ranges = segments
        q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in rotate(qkv, angles))  # [1, H, T, D]
        parts = [
            F.scaled_dot_product_attention(q[:, :, a:b], k[:, :, a:b], v[:, :, a:b])
            for a, b in ranges
        ]
        return torch.cat([part.transpose(1, 2) for part in parts], dim=1).flatten(2).squeeze(0)


class PaddedAttention:
    """One scaled-dot-product call for all sequences of like length: any device, any dtype.

    A sequence is padded to a length that follows from its own, and is always masked, so its
    arithmetic is the same in any company: only how many stand beside it in a call changes, and a
    call computes each of them by itself.
    """

    name = "padded"
    on_device = False
    interleaved_rotary = True

    def prepare(self, sequences: PackedSequences) -> Segments:
        """Return the angles of every token, and where tokens stand among the padded ones."""
        bounds = sequences.cu_seqlens.cpu().numpy().astype(np.int64)
        lengths = np.diff(bounds)
        padded = padded_lengths(lengths)
        shapes = [  # [sequences, tokens of each] of every call
            (int(count), int(length))
            for length, count in zip(*np.unique(padded, return_counts=True), strict=True)
            if length
        ]
        order = np.argsort(padded, kind="stable")
        sequence = np.repeat(order, padded[order])  # of each padded token
        place = np.arange(len(sequence)) - np.repeat(
            np.cumsum(padded[order]) - padded[order], padded[order]
        )
        real = place < lengths[sequence]
        # Padding repeats a token of its own sequence: a value of another that is not finite would
        # pass the mask.
        token = bounds[sequence] + np.minimum(place, lengths[sequence] - 1)
        back = np.empty(len(sequences.positions), dtype=np.int64)
        back[token[real]] = np.flatnonzero(real)
        moved = [_moved(x, sequences.device) for x in (token, real, back)]
        return sequences.angles, *moved, shapes

    def __call__(self, qkv: Tensor, segments: Segments) -> Tensor:
        """Attend within each sequence; see `Attention`."""
        angles, token, real, back, shapes = segments
        sizes = [count * length for count, length in shapes]
        groups = [torch.split(x.index_select(0, token), sizes) for x in rotate(qkv, angles)]
        masks, parts = torch.split(real, sizes), []
        # On CUDA the one kernel that takes a mask and computes each sequence by itself; of the
        # others one is matrix products for all, whose sums may differ with their number.
        only = sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION) if qkv.is_cuda else nullcontext()
        with only:
            for shape, mask, *group in zip(shapes, masks, *groups, strict=True):
                q, k, v = (x.unflatten(0, shape).transpose(1, 2) for x in group)  # [B, H, L, D]
                seen = mask.view(shape)[:, None, None]
                part = F.scaled_dot_product_attention(q, k, v, seen)
                parts.append(part.transpose(1, 2).flatten(2).flatten(0, 1))
        return torch.cat(parts).index_select(0, back)


def _moved(array: NDArray[Any], device: torch.device) -> Tensor:
    """Copy an array to a device, without waiting where that can be."""
    tensor = torch.from_numpy(array)
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def padded_lengths(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the lengths that sequences of these lengths are padded to; zero stays zero.

    They are an eighth of a power of two apart, 8 at least. Of the lengths of viral proteins 4% is
    padding, and a step of a hundred sequences takes some 25 calls.
    """
    bits = np.frexp(lengths)[1].astype(np.int64)  # to write the length
    step = 1 << np.maximum(bits - 4, 3)
    padded: NDArray[np.int64] = -(-lengths // step) * step
    return padded


class VarlenAttention:
    """torch's variable-length FlashAttention: CUDA, float16 and bfloat16."""

    name = "varlen"
    on_device = True
    interleaved_rotary = True

    def prepare(self, sequences: PackedSequences) -> Segments:
        """Return the angles of every token, and the bounds: the kernel reads them on the device."""
        bounds = sequences.cu_seqlens.to(sequences.device, non_blocking=True)
        return sequences.angles, bounds, sequences.max_seqlen

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

    def prepare(self, sequences: PackedSequences) -> Segments:
        """Return the tables of angles and the tiles; the kernel knows the positions by itself."""
        block = kernels.QUERY_BLOCK
        bounds = sequences.cu_seqlens.cpu().numpy()
        capacity = kernels.tile_capacity(len(sequences.positions), len(bounds) - 1, block)
        host = torch.from_numpy(kernels.attention_tiles(bounds, block, capacity)).pin_memory()
        return *sequences.rotary, host.to(sequences.device, non_blocking=True)

    def __call__(self, qkv: Tensor, segments: Segments) -> Tensor:
        """Attend within each sequence; see `Attention`."""
        from virnucpro.model.kernels.attention import packed_attention

        return packed_attention(qkv, *segments)
