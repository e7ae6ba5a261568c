"""How a model computes on its device: one table, tried from the fastest to the one for all."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from virnucpro.errors import InputError
from virnucpro.model import kernels
from virnucpro.model.attention import (
    Attention,
    PaddedAttention,
    SequenceAttention,
    TileAttention,
    VarlenAttention,
)
from virnucpro.model.kernels import Kernels

__all__ = ["Backend", "select_backend"]


@dataclass(frozen=True)
class Backend:
    """The implementations of a model's operations that belong together."""

    attention: Attention
    kernels: Kernels  # of the elementwise operations
    reason: str  # why this backend, for the log

    @property
    def name(self) -> str:
        """The name of the attention, as in logs and receipts."""
        return self.attention.name

    @property
    def on_device(self) -> bool:
        """Whether a step is work of the device alone, so that a CUDA graph can hold it."""
        return self.attention.on_device


_ATTENTION: tuple[type[Attention], ...] = (
    TileAttention,
    VarlenAttention,
    PaddedAttention,
    SequenceAttention,
)


def select_backend(name: str, device: torch.device, dtype: torch.dtype) -> Backend:
    """Choose the backend of a device and a dtype.

    Args:
        name: ``auto``, ``sdpa``, ``padded``, ``varlen`` or ``tiles``; the last brings the other
            fused kernels with it.
        device: where the model runs.
        dtype: what it computes in.

    Raises:
        InputError: the backend does not exist, or not for this device and dtype.
    """
    known = {attention.name: attention for attention in _ATTENTION}
    usable = _usable(device, dtype)
    if name != "auto" and name not in known:
        raise InputError(f"unknown attention backend {name!r}", hint=f"auto, {', '.join(known)}")
    if name != "auto" and name not in usable:
        raise InputError(
            f"attention backend {name!r} cannot run {dtype} on {device}",
            hint=f"here {', '.join(usable)} can; others need CUDA, 16 bits and, for tiles, triton",
        )
    chosen = name if name != "auto" else next(reversed(usable))
    fused = kernels.fused() if chosen == TileAttention.name else Kernels()
    return Backend(known[chosen](), fused, usable[chosen] if name == "auto" else "asked for")


def _usable(device: torch.device, dtype: torch.dtype) -> dict[str, str]:
    """Say which backends can run, and why; the fastest is the last."""
    sdpa = {"sdpa": f"{dtype} on {device}: one call a sequence"}
    padded = {"padded": f"{dtype} on {device}: one call for sequences of like length"}
    # A call for one sequence leaves most of a GPU idle; a CPU is busy, and padding costs it time.
    usable = padded | sdpa if device.type == "cpu" else sdpa | padded
    if device.type != "cuda" or dtype not in (torch.float16, torch.bfloat16):
        return usable
    if torch.cuda.get_device_capability(device) >= (8, 0):
        usable["varlen"] = "16 bits on a CUDA device: torch's variable-length kernel"
        with torch.cuda.device(device):
            runs, reason = kernels.available()
        if runs:
            usable["tiles"] = f"16 bits on {reason}"
    return usable
