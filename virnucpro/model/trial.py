"""A backend's operations on a few made-up rows, beside the references: whether it runs here.

What a card can do is not read off its name or its number. A build without code for the card, a
head dimension that no kernel was made for, a compiler that is older than the card: all show when
it is tried, and only then.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from virnucpro.model.attention import Attention, PackedSequences
from virnucpro.model.config import ModelConfig
from virnucpro.model.kernels import QUERY_BLOCK, Kernels, attention_tiles, reference, tile_capacity
from virnucpro.model.rotary import RotaryTables, inverse_frequencies

__all__ = ["Agreement", "compare", "in_one_line", "relative_error", "why_not"]

# Tokens: more than a tile, and very short ones. The sum is a multiple of 16, as a step's is, so
# that what is compiled here is what the steps use.
_LENGTHS = (70, 3, 7)
# Relative: rounding to 16 bits makes at most 0.004, as do the few values between two numbers of
# float8 that may go either way; a wrong kernel makes about 1.
_TOLERANCE = 0.02
_MESSAGE = 160  # characters of an error's text


@dataclass(frozen=True)
class Agreement:
    """How far a result is from what it has to agree with."""

    name: str  # of the operation
    error: float  # ||ours - theirs|| / ||theirs||; NaN where ours is, or has another shape
    tolerance: float = _TOLERANCE

    @property
    def holds(self) -> bool:
        """Whether the error is tolerated; NaN is not."""
        return self.error <= self.tolerance

    def __str__(self) -> str:
        return f"{self.name} {self.error:.1e}" + ("" if self.holds else f" > {self.tolerance:.0e}")


@torch.inference_mode()
def compare(
    attention: Attention,
    kernels: Kernels,
    device: torch.device,
    dtype: torch.dtype,
    config: ModelConfig,
    *,
    float8: bool = False,
) -> list[Agreement]:
    """Compare a backend's attention, and those kernels that are not the references, with these.

    Args:
        attention: the attention.
        kernels: the elementwise operations that go with it.
        device: where they are to run; the current one, if it is a GPU.
        dtype: what they are to compute in.
        config: the model's shape.
        float8: whether the kernels in float8 are compared too; their rows are bfloat16.

    Returns:
        One for the attention and one for each kernel.
    """
    found = [Agreement("attention", _attention_error(attention, device, dtype, config))]
    for name, calls in _calls(dtype, config.dim).items():
        ours, theirs = getattr(kernels, name), getattr(Kernels(), name)
        if ours is theirs or ("float8" in name and not float8):
            continue
        errors = []
        for given in calls:
            got = ours(*(_to(each, device) for each in given))
            expected = theirs(*(_exact(each) for each in given))
            errors.append(relative_error(_matrix(got), _matrix(expected)))
        found.append(Agreement(name, float(torch.tensor(errors).max())))  # NaN stays
    return found


def why_not(
    attention: Attention,
    kernels: Kernels,
    device: torch.device,
    dtype: torch.dtype,
    config: ModelConfig,
) -> str | None:
    """Try a backend on a few rows of a model's shape, and say why it does not run.

    Args:
        attention: as of `compare`, like the others.
        kernels: see there.
        device: see there.
        dtype: see there.
        config: see there.

    Returns:
        None where it runs and agrees with the references, else the reason.

    Raises:
        torch.cuda.OutOfMemoryError: the device is full, which says nothing of the backend.
    """
    try:
        found = compare(attention, kernels, device, dtype, config)
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as error:  # compilers and drivers raise what they like
        return in_one_line(error)
    wrong = next((each for each in found if not each.holds), None)
    return None if wrong is None else f"{wrong.name} is off by {wrong.error:.2g}"


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
    segments = attention.prepare(PackedSequences(positions, bounds, longest, tables, heads))
    return relative_error(attention(qkv.to(device), segments), expected)


def _calls(dtype: torch.dtype, dim: int) -> dict[str, list[tuple[Any, ...]]]:
    """Return arguments for each kernel, those of a layer between its products."""
    tokens = sum(_LENGTHS)
    rows, narrow = _random(tokens, dim).to(dtype), _random(tokens, 16).to(dtype)
    weight, bias = _random(2, dim).to(dtype)
    wide, wide_bias = _random(4 * dim, 16).to(dtype), _random(4 * dim).to(dtype)
    ranges = torch.tensor([[1, _LENGTHS[0] - 1], [_LENGTHS[0], tokens]], dtype=torch.int32)
    norm = [(rows, weight, bias, 1e-5, None), (rows, weight, bias, 1e-5, bias.float())]
    in_bfloat16 = [tuple(_to(x, torch.bfloat16) for x in given[:4]) + given[4:] for given in norm]
    left, right = rows.bfloat16(), _random(64, dim).bfloat16()
    return {
        "layer_norm": norm,
        "linear_gelu": [(narrow, wide, wide_bias)],
        "pool_mean": [(rows, ranges)],
        "layer_norm_float8": in_bfloat16,
        "bias_gelu_float8": [(left, bias.bfloat16())],
        "float8_product": [(reference.float8_rows(left), reference.float8_rows(right))],
    }


def _to(value: Any, where: torch.device | torch.dtype) -> Any:
    """Convert a tensor, or those of a pair; anything else stays."""
    if isinstance(value, tuple):
        return tuple(_to(each, where) for each in value)
    return value.to(where) if isinstance(value, Tensor) else value


def _exact(value: Any) -> Any:
    """Return rows of 16 bits in float32; anything else stays."""
    is_short = isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16)
    return value.float() if is_short else value


def _matrix(found: Any) -> Tensor:
    """Return what a kernel gave; rows in float8 are multiplied by their scales."""
    if isinstance(found, Tensor):
        return found
    values, scales = found
    product: Tensor = values.float() * scales
    return product


def _random(*shape: int) -> Tensor:
    """Return the same normal numbers every time, on the CPU."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def relative_error(got: Tensor, expected: Tensor) -> float:
    """Return ||got - expected|| / ||expected||; NaN for a result of another shape."""
    if got.shape != expected.shape:
        return float("nan")
    expected = expected.double().cpu()
    return float((got.double().cpu() - expected).norm() / expected.norm())
