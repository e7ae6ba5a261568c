"""Kernels for packed ESM-2 on a GPU, and their reference implementations in plain torch.

Importing this package needs no triton.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from importlib.util import find_spec
from typing import Any

import torch

from virnucpro.model.kernels import reference
from virnucpro.model.kernels.tiles import attention_tiles, tile_capacity

__all__ = ["QUERY_BLOCK", "Kernels", "attention_tiles", "available", "fused", "tile_capacity"]

QUERY_BLOCK = 64
"""Query rows of a tile: the `block` that `attention_tiles` is to be called with."""

_MINIMUM_CAPABILITY = (8, 0)


@dataclass(frozen=True)
class Kernels:
    """One implementation of each elementwise operation; signatures as in `reference`."""

    layer_norm: Callable[..., Any] = reference.layer_norm
    layer_norm_float8: Callable[..., Any] = reference.layer_norm_float8
    linear_gelu: Callable[..., Any] = reference.linear_gelu
    bias_gelu_float8: Callable[..., Any] = reference.bias_gelu_float8
    float8_product: Callable[..., Any] = reference.float8_product
    pool_mean: Callable[..., Any] = reference.pool_mean


def available() -> tuple[bool, str]:
    """Say whether the Triton kernels run on the current CUDA device, and why or why not."""
    if find_spec("triton") is None:
        return False, "triton is not installed"
    if not torch.cuda.is_available():
        return False, "no CUDA device"
    capability = torch.cuda.get_device_capability()
    name = f"{torch.cuda.get_device_name()} (compute capability {capability[0]}.{capability[1]})"
    if capability < _MINIMUM_CAPABILITY:
        return False, f"{name}: 8.0 or newer is needed"
    return True, name


def fused() -> Kernels:
    """Return the Triton kernels; only where they are `available`."""
    from virnucpro.model.kernels import elementwise, float8

    homes = {"float8_product": float8}
    names = [field.name for field in fields(Kernels)]
    return Kernels(**{name: getattr(homes.get(name, elementwise), name) for name in names})
