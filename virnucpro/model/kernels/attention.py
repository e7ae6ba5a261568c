"""Attention made for packed proteins: a program for each (block of query rows, head), none empty.

The collator knows every sequence's length, so the grid is an exact list of tiles
(`virnucpro.model.kernels.tiles`) instead of the longest sequence times the number of sequences, and
tiles are small enough for short proteins. Within a tile it is FlashAttention's forward pass (Dao
2023, arXiv:2307.08691) with the softmax in float32.

Rotary positions: a first kernel writes rotated keys once, since every tile of a sequence reads all
of them; queries are read once and rotated where they are read.

A tile reads nothing outside its own sequence, adds up in one fixed order and uses no atomics: the
bits of a sequence do not depend on what it is packed with or where it stands, not even when a
neighbour holds NaN. The reference is `virnucpro.model.kernels.reference.packed_attention`.
"""

# mypy: disallow_untyped_decorators=False

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime import driver

from virnucpro.model.kernels import QUERY_BLOCK

__all__ = ["packed_attention"]


@dataclass(frozen=True)
class _Config:
    """How the attention kernel is built for a head dimension; see `_CONFIGS`.

    Attributes:
        keys: keys and values handled at once.
        tail: the same for the keys behind the last whole block, or None to mask every block.
            Interior blocks without a mask suit long sequences, one loop suits short ones.
        stages: how many blocks of keys are in flight.
        registers: most registers of a thread on a Hopper card, None for no limit; fewer let more
            programs share a multiprocessor.
    """

    keys: int
    tail: int | None
    stages: int
    registers: int | None


# Measured on an H100 for float16 (benchmarks/kernels.py); bfloat16 moves and multiplies the same
# bytes. Never tuned at run time: neither bits nor start-up time may depend on a measurement.
_CONFIGS = {
    16: _Config(keys=64, tail=64, stages=3, registers=96),
    24: _Config(keys=64, tail=32, stages=3, registers=96),
    32: _Config(keys=64, tail=32, stages=3, registers=96),
    64: _Config(keys=64, tail=32, stages=3, registers=None),
    128: _Config(keys=64, tail=None, stages=3, registers=None),
}
_HOPPER = 90
# AMD's cards have 64 KB of shared memory: three blocks of 128 dimensions would not fit.
_AMD_STAGES = 2
_WARPS = 4
_ROTATE_ROWS = 32
_ROTATE_ELEMENTS = {16: 1024, 24: 1024, 32: 1024, 64: 2048, 128: 2048}  # of each half, a program


def packed_attention(
    qkv: Tensor, cos: Tensor, sin: Tensor, tiles: Tensor, *, out: Tensor | None = None
) -> Tensor:
    """Attend within each packed sequence, rotary positions included.

    Args:
        qkv: [T, 3, H, D] float16 or bfloat16, contiguous, not rotated; D is 16, 24, 32, 64 or 128.
        cos: [P, D/2] float32, contiguous; P is at least the longest sequence's tokens.
        sin: like `cos`.
        tiles: [3, n] int32 on the same device, of `attention_tiles` with blocks of `QUERY_BLOCK`.
        out: [T, H*D] to write to; new when left out.

    Returns:
        [T, H*D] in the dtype of `qkv`. Rows that no tile covers are not written.

    Raises:
        ValueError: a shape, a dtype or a memory layout that the kernel does not take.
    """
    T, _, H, D = qkv.shape
    _check(qkv, cos, sin, tiles)
    if out is None:
        out = qkv.new_empty(T, H * D)
    keys = _rotated_keys(qkv, cos, sin, tiles)
    config = _CONFIGS[D]
    stages, limit = _for_this_card(config)
    _attention_kernel[(H, tiles.shape[1])](
        qkv,
        keys,
        out,
        cos,
        sin,
        tiles,
        tiles.shape[1],
        H,
        D**-0.5 * math.log2(math.e),
        D=D,
        HALF=keys.shape[2] // 2,
        ROWS=QUERY_BLOCK,
        KEYS=config.keys,
        TAIL=config.tail or config.keys,
        PEELED=config.tail is not None,
        STAGES=stages,
        num_warps=_WARPS,
        num_stages=stages,
        **limit,
    )
    return out


def _for_this_card(config: _Config) -> tuple[int, dict[str, int]]:
    """Return the blocks in flight, and the options that limit registers.

    The limits hold what Hopper's matrix instructions need; those of other generations keep more in
    registers and would spill. AMD's compiler knows no limit.
    """
    if triton.knobs.runtime.interpret:
        return config.stages, {}
    target = driver.active.get_current_target()
    if target.backend != "cuda":
        return min(config.stages, _AMD_STAGES), {}
    if target.arch != _HOPPER or config.registers is None:
        return config.stages, {}
    return config.stages, {"maxnreg": config.registers}


def _check(qkv: Tensor, cos: Tensor, sin: Tensor, tiles: Tensor) -> None:
    """Refuse what the kernels would misread."""
    D = qkv.shape[-1]
    if qkv.dim() != 4 or qkv.shape[1] != 3 or D not in _CONFIGS:
        raise ValueError(f"qkv must be [T, 3, H, D] with D of {list(_CONFIGS)}: {tuple(qkv.shape)}")
    if qkv.dtype not in (torch.float16, torch.bfloat16):
        raise ValueError(f"qkv must be float16 or bfloat16, not {qkv.dtype}")
    if cos.shape[1:] != (D // 2,) or sin.shape != cos.shape or cos.dtype != torch.float32:
        raise ValueError(f"cos and sin must be [P, {D // 2}] float32")
    if tiles.shape[0] != 3 or tiles.dtype != torch.int32:
        raise ValueError("tiles must be [3, n] int32")
    if not all(x.is_contiguous() for x in (qkv, cos, sin, tiles)):
        raise ValueError("qkv, cos, sin and tiles must be contiguous")


def _rotated_keys(qkv: Tensor, cos: Tensor, sin: Tensor, tiles: Tensor) -> Tensor:
    """Return the rotated keys [T, H, 2 * half], each half filled with zeros to a power of two."""
    T, _, H, D = qkv.shape
    half = triton.next_power_of_2(D // 2)
    keys = qkv.new_empty(T, H, 2 * half)
    heads = min(_ROTATE_ELEMENTS[D] // (_ROTATE_ROWS * half), triton.next_power_of_2(H))
    grid = (tiles.shape[1], QUERY_BLOCK // _ROTATE_ROWS, triton.cdiv(H, heads))
    _rotate_keys_kernel[grid](
        qkv,
        keys,
        cos,
        sin,
        tiles,
        tiles.shape[1],
        H,
        D=D,
        HALF=half,
        HEADS=heads,
        ROWS=_ROTATE_ROWS,
        num_warps=_WARPS,
    )
    return keys


@triton.jit(do_not_specialize=["capacity"])
def _rotate_keys_kernel(
    qkv_ptr: tl.tensor,
    keys_ptr: tl.tensor,
    cos_ptr: tl.tensor,
    sin_ptr: tl.tensor,
    tiles_ptr: tl.tensor,
    capacity: tl.tensor,
    H: tl.tensor,
    D: tl.constexpr,
    HALF: tl.constexpr,
    HEADS: tl.constexpr,
    ROWS: tl.constexpr,
) -> None:
    tile = tl.program_id(0)
    length = tl.load(tiles_ptr + capacity + tile)
    first = tl.load(tiles_ptr + 2 * capacity + tile) + tl.program_id(1) * ROWS
    if first >= length:
        return
    position = first + tl.arange(0, ROWS)
    column = tl.arange(0, HALF)
    angle_at = position[:, None] * (D // 2) + column[None, :]
    angle_mask = (position < length)[:, None] & (column < D // 2)[None, :]
    cos = tl.load(cos_ptr + angle_at, mask=angle_mask, other=0.0)[:, None, :]
    sin = tl.load(sin_ptr + angle_at, mask=angle_mask, other=0.0)[:, None, :]

    head = tl.program_id(2) * HEADS + tl.arange(0, HEADS)
    token = (tl.load(tiles_ptr + tile) + position).to(tl.int64)[:, None, None]
    mask = angle_mask[:, None, :] & (head < H)[None, :, None]  # [ROWS, HEADS, HALF]
    source = qkv_ptr + ((token * 3 + 1) * H + head[None, :, None]) * D + column[None, None, :]
    a = tl.load(source, mask=mask, other=0.0).to(tl.float32)
    b = tl.load(source + D // 2, mask=mask, other=0.0).to(tl.float32)
    mask = (position < length)[:, None, None] & (head < H)[None, :, None]
    target = keys_ptr + (token * H + head[None, :, None]) * (2 * HALF) + column[None, None, :]
    tl.store(target, (a * cos - b * sin).to(keys_ptr.dtype.element_ty), mask=mask)
    tl.store(target + HALF, (b * cos + a * sin).to(keys_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _rotated_queries(
    q_ptr: tl.tensor,
    cos_ptr: tl.tensor,
    sin_ptr: tl.tensor,
    position: tl.tensor,
    length: tl.tensor,
    stride: tl.tensor,
    D: tl.constexpr,
    HALF: tl.constexpr,
) -> tl.tensor:
    """Read query rows of one head and rotate them: [ROWS, 2 * HALF], laid out like the keys."""
    row, column = position[:, None], tl.arange(0, HALF)[None, :]
    mask = (row < length) & (column < D // 2)
    a = tl.load(q_ptr + row * stride + column, mask=mask, other=0.0)
    b = tl.load(q_ptr + row * stride + column + D // 2, mask=mask, other=0.0)
    cos = tl.load(cos_ptr + row * (D // 2) + column, mask=mask, other=0.0)
    sin = tl.load(sin_ptr + row * (D // 2) + column, mask=mask, other=0.0)
    first = (a.to(tl.float32) * cos - b.to(tl.float32) * sin).to(a.dtype)
    second = (b.to(tl.float32) * cos + a.to(tl.float32) * sin).to(a.dtype)
    halves = tl.join(first, second).permute(0, 2, 1)
    return tl.reshape(halves, [position.shape[0], 2 * HALF])


@triton.jit
def _attend(
    q: tl.tensor,
    k_ptr: tl.tensor,
    v_ptr: tl.tensor,
    key: tl.tensor,
    length: tl.tensor,
    width: tl.tensor,
    key_width: tl.tensor,
    highest: tl.tensor,
    total: tl.tensor,
    mixed: tl.tensor,
    scale: tl.tensor,
    D: tl.constexpr,
    MASKED: tl.constexpr,
) -> tl.tensor:
    """Add a block of keys to the running maximum, sum of weights and weighted values."""
    real, column = key < length, tl.arange(0, q.shape[1])[None, :]
    k_at, v_at = k_ptr + key[:, None] * key_width + column, v_ptr + key[:, None] * width + column
    if MASKED:
        # Rows behind the sequence belong to a neighbour: they are not read, 0 stands for them.
        k = tl.load(k_at, mask=real[:, None], other=0.0)
        v = tl.load(v_at, mask=real[:, None] & (column < D), other=0.0)
        scores = tl.dot(q, k.T) + tl.where(real, 0.0, float("-inf"))[None, :]
    else:
        k = tl.load(k_at)
        v = tl.load(v_at, mask=column < D, other=0.0)
        scores = tl.dot(q, k.T)
    higher = tl.maximum(highest, tl.max(scores, 1))
    weights = tl.exp2(scores * scale - (higher * scale)[:, None])
    shrink = tl.exp2((highest - higher) * scale)
    total = total * shrink + tl.sum(weights, 1)
    mixed = tl.dot(weights.to(v.dtype), v, mixed * shrink[:, None])
    return higher, total, mixed


@triton.jit(do_not_specialize=["capacity"])
def _attention_kernel(
    qkv_ptr: tl.tensor,
    keys_ptr: tl.tensor,
    out_ptr: tl.tensor,
    cos_ptr: tl.tensor,
    sin_ptr: tl.tensor,
    tiles_ptr: tl.tensor,
    capacity: tl.tensor,
    H: tl.tensor,
    scale: tl.tensor,  # D**-0.5 * log2(e): the exponentials are powers of two
    D: tl.constexpr,
    HALF: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    TAIL: tl.constexpr,
    PEELED: tl.constexpr,
    STAGES: tl.constexpr,
) -> None:
    head, tile = tl.program_id(0), tl.program_id(1)
    length = tl.load(tiles_ptr + capacity + tile)
    if length == 0:
        return
    start = tl.load(tiles_ptr + tile).to(tl.int64)
    position = tl.load(tiles_ptr + 2 * capacity + tile) + tl.arange(0, ROWS)
    q_ptr = qkv_ptr + start * 3 * H * D + head * D
    v_ptr = q_ptr + 2 * H * D
    k_ptr = keys_ptr + (start * H + head) * (2 * HALF)
    width, key_width = 3 * H * D, H * (2 * HALF)
    q = _rotated_queries(q_ptr, cos_ptr, sin_ptr, position, length, width, D, HALF)

    highest = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    mixed = tl.zeros([ROWS, 2 * HALF], tl.float32)
    whole = 0
    if PEELED:
        whole = length // KEYS * KEYS
        for block in tl.range(0, whole, KEYS, num_stages=STAGES):
            key = block + tl.arange(0, KEYS)
            highest, total, mixed = _attend(
                q, k_ptr, v_ptr, key, length, width, key_width, highest, total, mixed, scale,
                D, False,
            )  # fmt: skip
    for block in tl.range(whole, length, TAIL, num_stages=2 if PEELED else STAGES):
        key = block + tl.arange(0, TAIL)
        highest, total, mixed = _attend(
            q, k_ptr, v_ptr, key, length, width, key_width, highest, total, mixed, scale, D, True
        )
    column = tl.arange(0, 2 * HALF)[None, :]
    at = (start + position.to(tl.int64))[:, None] * (H * D) + head * D + column
    result = (mixed / total[:, None]).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + at, result, mask=(position < length)[:, None] & (column < D))
