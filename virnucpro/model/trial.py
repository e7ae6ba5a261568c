"""A backend's first call, on a few made-up rows, beside the references: whether it runs here.

What a card can do is not read off its name or its number. A build without code for the card, a
head dimension that no kernel was made for, a compiler that is older than the card: all show when
it is tried, and only then.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from virnucpro.model.attention import Attention
from virnucpro.model.config import ModelConfig
from virnucpro.model.kernels import QUERY_BLOCK, Kernels, attention_tiles, reference, tile_capacity
from virnucpro.model.rotary import RotaryTables, inverse_frequencies

__all__ = ["in_one_line", "why_not"]

# Tokens: more than a tile, and very short ones. The sum is a multiple of 16, as a step's is, so
# that what is compiled here is what the steps use.
_LENGTHS = (70, 3, 7)
_LARGEST_ERROR = 0.02  # relative: rounding to 16 bits makes at most 0.004, a wrong kernel about 1
_MESSAGE = 160  # characters of an error's text


def why_not(
    attention: Attention,
    kernels: Kernels,
    device: torch.device,
    dtype: torch.dtype,
    config: ModelConfig,
) -> str | None:
    """Try a backend on a few rows of a model's shape, and say why it does not run.

    Args:
        attention: the attention.
        kernels: the elementwise operations that go with it.
        device: where they are to run; the current one, if it is a GPU.
        dtype: what they are to compute in.
        config: the model's shape.

    Returns:
        None where it runs and agrees with the references, else the reason.

    Raises:
        torch.cuda.OutOfMemoryError: the device is full, which says nothing of the backend.
    """
    try:
        errors = [_attention_error(attention, device, dtype, config)]
        if kernels != Kernels():
            errors += _kernels_errors(kernels, device, dtype, config.dim)
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as error:  # compilers and drivers raise what they like
        return in_one_line(error)
    worst = float(torch.tensor(errors).max())  # NaN where there is one
    return None if worst < _LARGEST_ERROR else f"it is off by {worst:.2g} from the reference"


def in_one_line(error: Exception) -> str:
    """Return the kind and the beginning of the text of an error that a library raised."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:_MESSAGE]


def _attention_error(
    attention: Attention, device: torch.device, dtype: torch.dtype, config: ModelConfig
) -> float:
    """Attend within short sequences; returns the relative error."""
    heads, head_dim = config.heads, config.head_dim
    bounds = torch.tensor([0, *itertools.accumulate(_LENGTHS)], dtype=torch.int32)
    positions = torch.cat([torch.arange(length, dtype=torch.int32) for length in _LENGTHS])
    qkv = _random(sum(_LENGTHS), 3, heads, head_dim).to(dtype)
    frequencies, longest = inverse_frequencies(head_dim), max(_LENGTHS)

    capacity = tile_capacity(len(qkv), len(_LENGTHS), QUERY_BLOCK)
    tiles = torch.from_numpy(attention_tiles(bounds.numpy(), QUERY_BLOCK, capacity))
    cos, sin = RotaryTables(frequencies).tables(longest)
    expected = reference.packed_attention(qkv.float(), cos, sin, tiles)

    if attention.interleaved_rotary:
        halves = qkv[:, :2].view(len(qkv), 2, heads, 2, head_dim // 2)
        qkv = torch.cat((halves.transpose(3, 4).flatten(3), qkv[:, 2:]), dim=1)
    tables = RotaryTables(frequencies.to(device)).tables(longest)
    segments = attention.prepare(positions, bounds, longest, tables, heads)
    return _relative_error(attention(qkv.to(device), segments), expected)


def _kernels_errors(
    kernels: Kernels, device: torch.device, dtype: torch.dtype, dim: int
) -> list[float]:
    """Compute what a layer does between its products; returns the relative errors."""
    rows, narrow = _random(sum(_LENGTHS), dim).to(dtype), _random(sum(_LENGTHS), 16).to(dtype)
    weight, bias = _random(2, dim).to(dtype)
    wide, wide_bias = _random(4 * dim, 16).to(dtype), _random(4 * dim).to(dtype)
    ranges = torch.tensor([[1, _LENGTHS[0] - 1], [_LENGTHS[0], len(rows)]], dtype=torch.int32)
    calls = (
        ("layer_norm", (rows, weight, bias, 1e-5, None)),
        ("layer_norm", (rows, weight, bias, 1e-5, bias.float())),
        ("linear_gelu", (narrow, wide, wide_bias)),
        ("pool_mean", (rows, ranges)),
    )
    errors = []
    for name, given in calls:
        there = [x.to(device) if isinstance(x, Tensor) else x for x in given]
        exact = [x.float() if isinstance(x, Tensor) and x is not ranges else x for x in given]
        got = getattr(kernels, name)(*there)
        errors.append(_relative_error(got, getattr(Kernels(), name)(*exact)))
    return errors


def _random(*shape: int) -> Tensor:
    """Return the same normal numbers every time, on the CPU."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def _relative_error(got: Tensor, expected: Tensor) -> float:
    return float((got.double().cpu() - expected.double()).norm() / expected.double().norm())
