"""The kernels in plain torch: the same arguments and results, on any device and dtype.

They are what the kernels are tested against, and what runs where there is no GPU for them. Clear
before fast.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "bias_gelu",
    "bias_gelu_float8",
    "float8_product",
    "float8_rows",
    "layer_norm",
    "layer_norm_float8",
    "linear_gelu",
    "packed_attention",
    "pool_mean",
]


def packed_attention(
    qkv: Tensor, cos: Tensor, sin: Tensor, tiles: Tensor, *, out: Tensor | None = None
) -> Tensor:
    """Attend within each packed sequence, rotary positions included.

    Args:
        qkv: [T, 3, H, D], not rotated.
        cos: [P, D/2] float32, P at least the longest sequence.
        sin: like `cos`.
        tiles: [3, n] int32 as `attention_tiles` gives them; any block size does.
        out: [T, H*D] to write to; new when left out.

    Returns:
        [T, H*D] in the dtype of `qkv`. Rows that no tile covers are not written.
    """
    T, _, H, D = qkv.shape
    if out is None:
        out = qkv.new_empty(T, H * D)
    starts, lengths, _ = tiles.cpu()
    for start, length in sorted({(int(s), int(n)) for s, n in zip(starts, lengths, strict=True)}):
        if length == 0:
            continue
        rows = slice(start, start + length)
        q, k = (_rotate(qkv[rows, part], cos[:length], sin[:length]) for part in (0, 1))
        q, k, v = (x.float().transpose(0, 1) for x in (q, k, qkv[rows, 2]))  # [H, n, D]
        weights = torch.softmax(q @ k.transpose(1, 2) * D**-0.5, dim=-1)
        out[rows] = (weights @ v).transpose(0, 1).reshape(length, H * D).to(out.dtype)
    return out


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the two halves of each head of x [n, H, D] (fair-esm's ``rotary_embedding.py``)."""
    first, second = x.float().chunk(2, dim=-1)
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


def layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, deferred_bias: Tensor | None = None
) -> Tensor:
    """Normalise each row.

    Args:
        x: [T, dim].
        weight: [dim].
        bias: [dim].
        eps: added to the variance.
        deferred_bias: [dim], added to each row first, in float32: biases that a residual stream
            left out because its matrix products add into it in place.

    Returns:
        [T, dim] in the dtype of `x`; statistics are in float32.
    """
    if deferred_bias is None:  # torch takes the statistics of 16-bit rows in float32
        return F.layer_norm(x, x.shape[-1:], weight, bias, eps)
    rows = x + deferred_bias.float()
    return F.layer_norm(rows, x.shape[-1:], weight.float(), bias.float(), eps).to(x.dtype)


def bias_gelu(x: Tensor, bias: Tensor | None = None, *, inplace: bool = False) -> Tensor:
    """Return ``gelu(x + bias)`` of x [T, N] and bias [N], the erf form, computed in float32."""
    shifted = x.float() if bias is None else x.float() + bias.float()
    activated = F.gelu(shifted)
    return x.copy_(activated) if inplace else activated.to(x.dtype)


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return ``gelu(x @ weight.T + bias)``, the erf form.

    Args:
        x: [T, K].
        weight: [N, K].
        bias: [N].

    Returns:
        [T, N] in the dtype of `x`.
    """
    return F.gelu(F.linear(x, weight, bias))


def float8_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Scale each row into the range of float8 (e4m3: 4 bits of precision, largest value 448).

    Args:
        x: [T, N].

    Returns:
        [T, N] float8_e4m3fn and [T, 1] float32, whose product is about `x`. A row with a value that
        is not finite has a scale that is not finite.
    """
    largest = x.float().abs().amax(dim=1, keepdim=True)
    scales = torch.where(largest == 0, 1.0, largest / torch.finfo(torch.float8_e4m3fn).max)
    return (x.float() * (1 / scales)).to(torch.float8_e4m3fn), scales


def layer_norm_float8(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    deferred_bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Normalise each row as `layer_norm`, and give it in float8.

    Args:
        x: as the following, of `layer_norm`.
        weight: [dim].
        bias: [dim].
        eps: added to the variance.
        deferred_bias: [dim].

    Returns:
        What `float8_rows` gives of the normalised rows in float32.
    """
    rows = x.float() if deferred_bias is None else x.float() + deferred_bias.float()
    return float8_rows(F.layer_norm(rows, x.shape[-1:], weight.float(), bias.float(), eps))


def bias_gelu_float8(x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``gelu(x + bias)`` of x [T, N] and bias [N] in float8, as `float8_rows`."""
    return float8_rows(F.gelu(x.float() + bias.float()))


def float8_product(rows: tuple[Tensor, Tensor], weight: tuple[Tensor, Tensor]) -> Tensor:
    """Multiply scaled rows with a scaled weight.

    Args:
        rows: [T, K] float8_e4m3fn and [T, 1] float32.
        weight: [N, K] float8_e4m3fn and [N, 1] float32.

    Returns:
        [T, N] bfloat16.
    """
    (x, x_scales), (w, w_scales) = rows, weight
    return ((x.float() * x_scales) @ (w.float() * w_scales).t()).bfloat16()


def pool_mean(hidden: Tensor, ranges: Tensor, out: Tensor | None = None) -> Tensor:
    """Average over ranges of rows, in float32 and in a fixed order.

    Each range is summed from its first row to its last, whatever stands beside it.

    Args:
        hidden: [T, dim].
        ranges: [B, 2] integer, the first row of each range and one past its last; increasing, and
            none overlaps another.
        out: [B, dim] float32 to write to; new when left out.

    Returns:
        [B, dim] float32; NaN for an empty range.
    """
    pooled = _pool("mean", hidden, ranges)
    return pooled if out is None else out.copy_(pooled)


def pool_max(hidden: Tensor, ranges: Tensor) -> Tensor:
    """Return the largest values in ranges of rows; arguments as `pool_mean`.

    Returns:
        [B, dim] float32; a NaN in a range makes a NaN, and an empty range is minus infinity.
    """
    return _pool("max", hidden, ranges)


def _pool(reduce: str, hidden: Tensor, ranges: Tensor) -> Tensor:
    """Reduce the rows of each range, [B, dim] float32."""
    ends = ranges.new_zeros(1), ranges.new_full((1,), len(hidden))
    # A segment before each range, of what is left out, and one after the last.
    segments = torch.diff(ranges.flatten(), prepend=ends[0], append=ends[1]).long()
    # Only a CPU and CUDA can reduce segments.
    there = hidden.device if hidden.is_cuda else "cpu"
    rows, lengths = hidden.float().to(there), segments.to(there)
    pooled = torch.segment_reduce(rows, reduce, lengths=lengths, unsafe=True)[1::2]
    return pooled.to(hidden.device)
