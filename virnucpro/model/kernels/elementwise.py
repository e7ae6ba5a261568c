"""Fused passes over the activations: each tensor is read once and written once.

All of them are bound by memory, so a pass saved is time saved. They compute in float32 and round
once, at the end; every row (every element, every sequence) is computed from itself alone and in a
fixed order, whatever stands beside it. The references are in `virnucpro.model.kernels.reference`.
"""

# mypy: disallow_untyped_decorators=False

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

__all__ = [
    "bias_gelu",
    "bias_gelu_float8",
    "layer_norm",
    "layer_norm_float8",
    "linear_gelu",
    "pool_mean",
]

# Chosen by measurement on an H100 (benchmarks/kernels.py); never tuned at run time, so that bits
# and start-up time are the same in every run.
_NORM_ELEMENTS = 4096  # elements of a layer-norm program: several rows of a narrow model
_GELU_ELEMENTS = 2048
_POOL_ROWS, _POOL_COLUMNS = 64, 64
_FLOAT8_MAX = tl.constexpr(448.0)  # of torch.float8_e4m3fn


@triton.jit
def _larger(a: tl.tensor, b: tl.tensor) -> tl.tensor:
    """Return the larger one, and NaN where there is one: a row that holds it is found later."""
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _scale_of(largest: tl.tensor) -> tl.tensor:
    """Return what divides a row so that its largest value becomes float8's largest."""
    return tl.where(largest == 0.0, 1.0, largest / _FLOAT8_MAX)


@triton.jit
def _layer_norm_kernel(
    x_ptr: tl.tensor,
    out_ptr: tl.tensor,
    weight_ptr: tl.tensor,
    bias_ptr: tl.tensor,
    deferred_bias_ptr: tl.tensor,
    tokens: tl.tensor,
    eps: tl.tensor,
    DIM: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
    DEFERRED_BIAS: tl.constexpr,
    FLOAT8: tl.constexpr,
    scale_ptr: tl.tensor,
) -> None:
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    inside = (column < DIM)[None, :]
    mask = (row < tokens)[:, None] & inside
    at = row.to(tl.int64)[:, None] * DIM + column[None, :]
    x = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
    if DEFERRED_BIAS:
        deferred = tl.load(deferred_bias_ptr + column, mask=column < DIM, other=0.0)
        x += deferred.to(tl.float32)[None, :]
    mean = tl.sum(x, 1) / DIM
    centred = tl.where(inside, x - mean[:, None], 0.0)
    scale = 1.0 / tl.sqrt(tl.sum(centred * centred, 1) / DIM + eps)
    weight = tl.load(weight_ptr + column, mask=column < DIM, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + column, mask=column < DIM, other=0.0).to(tl.float32)
    y = centred * scale[:, None] * weight[None, :] + bias[None, :]
    if FLOAT8:
        scale = _scale_of(tl.reduce(tl.abs(tl.where(inside, y, 0.0)), 1, _larger))
        tl.store(scale_ptr + row, scale, mask=row < tokens)
        y *= (1.0 / scale)[:, None]
    tl.store(out_ptr + at, y.to(out_ptr.dtype.element_ty), mask=mask)


def layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, deferred_bias: Tensor | None = None
) -> Tensor:
    """Normalise each row; see `reference.layer_norm`."""
    out = torch.empty_like(x)
    _launch_layer_norm(x, weight, bias, eps, deferred_bias, out, None)
    return out


def layer_norm_float8(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    deferred_bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Normalise each row, and scale it into float8; see `reference.layer_norm_float8`."""
    rows, scales = _empty_float8(x)
    _launch_layer_norm(x, weight, bias, eps, deferred_bias, rows, scales)
    return rows, scales


def _launch_layer_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    deferred_bias: Tensor | None,
    out: Tensor,
    scales: Tensor | None,
) -> None:
    """Normalise each row into `out`, in float8 where there are `scales`."""
    tokens, dim = _rows(x)
    columns = triton.next_power_of_2(dim)
    rows, warps = max(1, _NORM_ELEMENTS // columns), 4
    if scales is not None:  # one reduction more: fewer warps wait for one another
        rows, warps = 2, max(1, columns // 2048)
    _layer_norm_kernel[(triton.cdiv(tokens, rows),)](
        x,
        out,
        weight,
        bias,
        weight if deferred_bias is None else deferred_bias,
        tokens,
        eps,
        DIM=dim,
        COLUMNS=columns,
        ROWS=rows,
        DEFERRED_BIAS=deferred_bias is not None,
        FLOAT8=scales is not None,
        scale_ptr=x if scales is None else scales,
        num_warps=warps,
    )


@triton.jit
def _gelu(x: tl.tensor) -> tl.tensor:
    """Return ``x * Phi(x)``, the erf form, to a relative error of 2e-6 on both sides of zero.

    With z = |x| / sqrt(2) and r = x / 2 * erfc(z), it is x - r for positive and r for negative x:
    nothing cancels. erfc(z) * exp(z**2) is a polynomial in 1 / (1 + p * z), the form of Abramowitz
    and Stegun 7.1.26, fitted for the least relative error (4e-7) for z from 0 to 8. It takes fewer
    instructions than the library's erf, which would bind this pass.
    """
    z = tl.abs(x) * 0.7071067811865476
    t = 1.0 / (1.0 + 0.37 * z)
    p = 0.447288358 - 0.145746623 * t
    p = -0.203464921 + p * t
    p = 0.330220436 + p * t
    p = 0.147447959 + p * t
    p = 0.215964122 + p * t
    p = (0.208290379 + p * t) * t
    rest = 0.5 * x * p * tl.exp2(-1.4426950408889634 * z * z)
    return tl.where(x > 0, x - rest, rest)


@triton.jit
def _bias_gelu_kernel(
    x_ptr: tl.tensor,
    bias_ptr: tl.tensor,
    out_ptr: tl.tensor,
    elements: tl.tensor,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
    BIAS: tl.constexpr,
) -> None:
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < elements
    x = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
    if BIAS:
        x += tl.load(bias_ptr + at % COLUMNS, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + at, _gelu(x).to(out_ptr.dtype.element_ty), mask=mask)


def bias_gelu(x: Tensor, bias: Tensor | None = None, *, inplace: bool = False) -> Tensor:
    """Apply bias and erf GELU in one pass; see `reference.bias_gelu`."""
    _, columns = _rows(x)
    out = x if inplace else torch.empty_like(x)
    _bias_gelu_kernel[(triton.cdiv(x.numel(), _GELU_ELEMENTS),)](
        x,
        x if bias is None else bias,
        out,
        x.numel(),
        COLUMNS=columns,
        BLOCK=_GELU_ELEMENTS,
        BIAS=bias is not None,
        num_warps=4,
    )
    return out


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Multiply, and apply bias and erf GELU in place; see `reference.linear_gelu`."""
    return bias_gelu(F.linear(x, weight), bias, inplace=True)


@triton.jit
def _activated(
    x_ptr: tl.tensor, bias_ptr: tl.tensor, column: tl.tensor, DIM: tl.constexpr
) -> tl.tensor:
    inside = column < DIM
    x = tl.load(x_ptr + column, mask=inside, other=0.0).to(tl.float32)
    x += tl.load(bias_ptr + column, mask=inside, other=0.0).to(tl.float32)
    return tl.where(inside, _gelu(x), 0.0)


@triton.jit
def _bias_gelu_float8_kernel(
    x_ptr: tl.tensor,
    bias_ptr: tl.tensor,
    out_ptr: tl.tensor,
    scale_ptr: tl.tensor,
    DIM: tl.constexpr,
    HEAD: tl.constexpr,
    TAIL: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    x_ptr += row * DIM
    out_ptr += row * DIM
    # A row is 5 * 2**k wide in all models: in two parts, few lanes have nothing to do.
    first, second = tl.arange(0, HEAD), HEAD + tl.arange(0, TAIL)
    a = _activated(x_ptr, bias_ptr, first, DIM)
    b = _activated(x_ptr, bias_ptr, second, DIM)
    scale = _scale_of(_larger(tl.reduce(tl.abs(a), 0, _larger), tl.reduce(tl.abs(b), 0, _larger)))
    tl.store(scale_ptr + row, scale)
    divide = 1.0 / scale
    tl.store(out_ptr + first, (a * divide).to(out_ptr.dtype.element_ty))
    tl.store(out_ptr + second, (b * divide).to(out_ptr.dtype.element_ty), mask=second < DIM)


def bias_gelu_float8(x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Apply bias and erf GELU, and scale rows into float8; see `reference.bias_gelu_float8`."""
    tokens, dim = _rows(x)
    rows = _empty_float8(x)
    head = 1 << (dim.bit_length() - 1)
    _bias_gelu_float8_kernel[(tokens,)](
        x,
        bias,
        *rows,
        DIM=dim,
        HEAD=head,
        TAIL=triton.next_power_of_2(max(dim - head, 1)),
        num_warps=min(max(head // 1024, 1), 16),
    )
    return rows


@triton.jit
def _pool_mean_kernel(
    hidden_ptr: tl.tensor,
    ranges_ptr: tl.tensor,
    out_ptr: tl.tensor,
    DIM: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    sequence = tl.program_id(0)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    first = tl.load(ranges_ptr + 2 * sequence).to(tl.int64)
    residues = tl.load(ranges_ptr + 2 * sequence + 1).to(tl.int64) - first
    row = tl.arange(0, ROWS)
    inside = (column < DIM)[None, :]
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(0, residues, ROWS):
        mask = ((start + row) < residues)[:, None] & inside
        at = (first + start + row)[:, None] * DIM + column[None, :]
        total += tl.load(hidden_ptr + at, mask=mask, other=0.0).to(tl.float32)
    # 0 / 0: a range without rows has no mean, and NaN says so.
    mean = tl.sum(total, 0) / tl.maximum(residues, 0).to(tl.float32)
    tl.store(out_ptr + sequence.to(tl.int64) * DIM + column, mean, mask=column < DIM)


def pool_mean(hidden: Tensor, ranges: Tensor, out: Tensor | None = None) -> Tensor:
    """Average over ranges of rows; see `reference.pool_mean`."""
    _, dim = _rows(hidden)
    sequences = len(ranges)
    if out is None:
        out = hidden.new_empty(sequences, dim, dtype=torch.float32)
    _pool_mean_kernel[(sequences, triton.cdiv(dim, _POOL_COLUMNS))](
        hidden, ranges, out, DIM=dim, ROWS=_POOL_ROWS, COLUMNS=_POOL_COLUMNS, num_warps=4
    )
    return out


def _empty_float8(x: Tensor) -> tuple[Tensor, Tensor]:
    """Make room for rows in float8 and their scales."""
    scales = x.new_empty(len(x), 1, dtype=torch.float32)
    return torch.empty_like(x, dtype=torch.float8_e4m3fn), scales


def _rows(x: Tensor) -> tuple[int, int]:
    """Return the shape of a matrix, after checking that its rows follow one another."""
    if x.dim() != 2 or not x.is_contiguous():
        raise ValueError(f"a contiguous matrix is wanted, not shape {tuple(x.shape)}")
    return x.shape[0], x.shape[1]
