"""What computes on this device against what it has to agree with, on a small batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from virnucpro.embed.batch import PackedBatch
from virnucpro.model.esm2 import PackedESM2
from virnucpro.model.kernels import (
    QUERY_BLOCK,
    Kernels,
    attention_tiles,
    reference,
    tile_capacity,
)

__all__ = ["Agreement", "compare_attention", "compare_kernels", "compare_packed"]

_LENGTHS = (3, 64, 65, 130, 1)  # of the sequences, in tokens: about the edges of tiles
_DIM, _HEADS = 320, 20
_SEED = 0
# ||ours - theirs|| / ||theirs||: a few units in the last place of each format; in float8 one value
# of a thousand, between two numbers, may go either way. Layers add up, so a model has more.
_TOLERANCES = {torch.float16: 5e-3, torch.bfloat16: 4e-2}
_FLOAT8_TOLERANCE = 1e-2
_MODEL_TOLERANCES = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}


@dataclass(frozen=True)
class Agreement:
    """How far a result is from what it has to agree with."""

    name: str
    error: float  # ||ours - theirs|| / ||theirs||; NaN where ours is, or has another shape
    tolerance: float

    @property
    def holds(self) -> bool:
        """Whether the error is tolerated; NaN is not."""
        return self.error <= self.tolerance

    def __str__(self) -> str:
        return f"{self.name} {self.error:.1e}" + ("" if self.holds else f" > {self.tolerance:.0e}")


@torch.inference_mode()
def compare_kernels(
    kernels: Kernels, device: torch.device, dtype: torch.dtype, *, float8: bool
) -> list[Agreement]:
    """Compare those kernels that are not the reference implementations with these.

    Args:
        kernels: what would compute.
        device: where.
        dtype: of the rows, float16 or bfloat16; those in float8 are made of bfloat16.
        float8: whether the device has float8 products.
    """
    found = []
    for field in fields(Kernels):
        ours, theirs = getattr(kernels, field.name), getattr(reference, field.name)
        in_float8 = "float8" in field.name
        if ours is theirs or (in_float8 and not float8):
            continue
        wide = torch.bfloat16 if in_float8 else dtype
        arguments = _arguments(field.name, device, wide)
        pairs = zip(_results(ours, arguments), _results(theirs, arguments), strict=True)
        tolerance = _FLOAT8_TOLERANCE if in_float8 else _TOLERANCES[dtype]
        error = float(np.max([_error(mine, other) for mine, other in pairs]))  # NaN stays
        found.append(Agreement(field.name, error, tolerance))
    return found


@torch.inference_mode()
def compare_attention(
    attention: Callable[..., Tensor], device: torch.device, dtype: torch.dtype
) -> Agreement:
    """Compare an attention over tiles with `virnucpro.model.kernels.reference.packed_attention`."""
    tokens, head_dim = sum(_LENGTHS), _DIM // _HEADS
    generator = torch.Generator().manual_seed(_SEED)
    qkv = torch.randn(tokens, 3, _HEADS, head_dim, generator=generator).to(device, dtype)
    frequencies = 10000.0 ** (-torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    angles = torch.outer(torch.arange(max(_LENGTHS), dtype=torch.float32), frequencies)
    capacity = tile_capacity(tokens, len(_LENGTHS), QUERY_BLOCK)
    tiles = torch.from_numpy(attention_tiles(_bounds(), QUERY_BLOCK, capacity)).to(device)
    arguments = qkv, angles.cos().to(device), angles.sin().to(device), tiles
    error = _error(attention(*arguments), reference.packed_attention(*arguments))
    return Agreement("packed_attention", error, _TOLERANCES[dtype])


@torch.inference_mode()
def compare_packed(model: PackedESM2) -> Agreement:
    """Compare a model on packed sequences with itself on one sequence at a time."""
    generator = torch.Generator().manual_seed(_SEED)
    bounds = _bounds()
    positions = np.arange(bounds[-1]) - np.repeat(bounds[:-1], np.diff(bounds))
    batch = PackedBatch(
        torch.randint(4, 24, (int(bounds[-1]),), generator=generator),
        torch.from_numpy(positions.astype(np.int32)),
        torch.from_numpy(bounds),
    )
    packed = _represent(model, batch)
    alone = [_represent(model, batch.select(np.array([row]))) for row in range(batch.sequences)]
    tolerance = _MODEL_TOLERANCES[model.dtype]
    return Agreement("packed against alone", _error(packed, torch.cat(alone)), tolerance)


def _represent(model: PackedESM2, batch: PackedBatch) -> Tensor:
    """Return the last representation of every token, [T, dim]."""
    last, longest = model.config.layers, int(batch.lengths.max())
    found: Tensor = model(batch.tokens, batch.positions, batch.cu_seqlens, longest, [last])[last]
    return found


def _bounds() -> np.ndarray:
    """Return where the sequences start, and their end, [B + 1]."""
    return np.concatenate([[0], np.cumsum(_LENGTHS)]).astype(np.int32)


def _arguments(name: str, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Make the arguments of a kernel, as `reference` names them."""
    generator = torch.Generator().manual_seed(_SEED)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device, dtype)

    x, wide_weight = random(sum(_LENGTHS), _DIM), random(4 * _DIM, _DIM) / _DIM**0.5
    norm = {"x": x, "weight": random(_DIM), "bias": random(_DIM), "eps": 1e-5}
    norm["deferred_bias"] = random(_DIM).float()
    if name in ("layer_norm", "layer_norm_float8"):
        return norm
    if name == "bias_gelu_float8":
        return {"x": x, "bias": random(_DIM)}
    if name == "linear_gelu":
        return {"x": x, "weight": wide_weight, "bias": random(4 * _DIM)}
    if name == "pool_mean":
        bounds = torch.from_numpy(_bounds()).to(device)
        return {"hidden": x, "ranges": torch.stack([bounds[:-1], bounds[1:]], dim=1)}
    if name == "float8_product":
        rows, weight = reference.float8_rows(x), reference.float8_rows(wide_weight)
        out = x.new_empty(len(x), 4 * _DIM)
        return {"rows": rows, "weight": weight, "bias": random(4 * _DIM), "out": out}
    raise ValueError(f"no arguments are known for the kernel {name}")


def _results(kernel: Callable[..., Any], arguments: dict[str, Any]) -> list[Tensor]:
    """Return the matrices that a kernel gives; rows in float8 are multiplied by their scales."""
    given = {
        key: torch.empty_like(value) if key == "out" else value for key, value in arguments.items()
    }
    return _matrices(kernel(**given))


def _matrices(found: Any) -> list[Tensor]:
    if isinstance(found, Tensor):
        return [found]
    if isinstance(found[0], Tensor) and found[0].dtype == torch.float8_e4m3fn:
        return [found[0].float() * found[1]]
    return [matrix for part in found for matrix in _matrices(part)]


def _error(ours: Tensor, theirs: Tensor) -> float:
    """Return the relative error; NaN for a result of another shape."""
    if ours.shape != theirs.shape:
        return float("nan")
    return float((ours.double() - theirs.double()).norm() / theirs.double().norm())
