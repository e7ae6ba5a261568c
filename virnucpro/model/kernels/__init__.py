"""Kernels for packed ESM-2 on a GPU, and their twins in plain torch.

Importing this package needs no triton; `select` gives the kernels that this machine can run.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, fields
from importlib.util import find_spec
from typing import Any

import torch

from virnucpro.model.kernels import reference
from virnucpro.model.kernels.tiles import attention_tiles, tile_capacity

__all__ = ["QUERY_BLOCK", "Kernels", "attention_tiles", "available", "select", "tile_capacity"]

QUERY_BLOCK = 64
"""Query rows of a tile: the `block` that `attention_tiles` is to be called with."""

_MINIMUM_CAPABILITY = (8, 0)


@dataclass(frozen=True)
class Kernels:
    """One implementation of each operation; signatures as in `reference`."""

    packed_attention: Callable[..., Any] = reference.packed_attention
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


def select(off: Collection[str] = ()) -> tuple[Kernels, str]:
    """Choose the implementations.

    Args:
        off: names of operations (fields of `Kernels`) to run in plain torch all the same.

    Returns:
        The implementations, and the reason for the choice.

    Raises:
        ValueError: `off` names an operation that does not exist.
    """
    names = {field.name for field in fields(Kernels)}
    if unknown := sorted(set(off) - names):
        raise ValueError(f"no such kernel: {', '.join(unknown)}; there are {sorted(names)}")
    usable, reason = available()
    if not usable:
        return Kernels(), f"plain torch: {reason}"
    from virnucpro.model.kernels import attention, elementwise, float8

    homes = {"packed_attention": attention, "float8_product": float8}
    chosen = {name: getattr(homes.get(name, elementwise), name) for name in names.difference(off)}
    switched = f", in plain torch: {', '.join(sorted(off))}" if off else ""
    return Kernels(**chosen), f"triton on {reason}{switched}"
