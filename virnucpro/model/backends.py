"""How a model computes on its device: one table, tried from the fastest to the one for all."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
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
from virnucpro.model.config import ModelConfig
from virnucpro.model.kernels import Kernels
from virnucpro.model.trial import in_one_line, why_not

__all__ = ["Backend", "select_backend"]


@dataclass(frozen=True)
class Backend:
    """The implementations of a model's operations that belong together."""

    attention: Attention
    kernels: Kernels  # of the elementwise operations
    reason: str  # why this backend, and why not a faster one: for the log

    @property
    def name(self) -> str:
        """The name of the attention, as in logs and receipts."""
        return self.attention.name

    @property
    def on_device(self) -> bool:
        """Whether a step is work of the device alone, so that a CUDA graph can hold it."""
        return self.attention.on_device


@dataclass(frozen=True)
class _Row:
    """A backend, and where it is worth a try."""

    attention: type[Attention]
    suits: Callable[[torch.device, torch.dtype], bool]
    what: str
    fused: bool = False  # whether our elementwise kernels go with it

    @property
    def name(self) -> str:
        """The name of the attention."""
        return self.attention.name


def _cuda_in_16_bits(device: torch.device, dtype: torch.dtype) -> bool:
    return device.type == "cuda" and dtype in (torch.float16, torch.bfloat16)


def _cpu(device: torch.device, _dtype: torch.dtype) -> bool:
    return device.type == "cpu"


# The fastest first. Whether a row runs is tried, on the device and with the model's shape; the last
# one runs everywhere. A call for one sequence leaves most of a GPU idle; a CPU is busy with it, and
# padding costs it time.
_TABLE = (
    _Row(TileAttention, _cuda_in_16_bits, "kernels of our own", fused=True),
    _Row(VarlenAttention, _cuda_in_16_bits, "torch's variable-length kernel"),
    _Row(SequenceAttention, _cpu, "one call a sequence"),
    _Row(PaddedAttention, lambda *_: True, "one call for sequences of like length"),
    _Row(SequenceAttention, lambda *_: True, "one call a sequence"),
)


def select_backend(
    name: str, device: torch.device, dtype: torch.dtype, config: ModelConfig
) -> Backend:
    """Choose the backend of a model on a device: the first of the table that runs.

    Args:
        name: ``auto``, or one of the table: ``tiles``, ``varlen``, ``padded`` or ``sdpa``.
        device: where the model runs.
        dtype: what it computes in.
        config: the model's shape.

    Raises:
        InputError: the backend does not exist, or does not run there.
        torch.cuda.OutOfMemoryError: the device has no room for a few rows.
    """
    names = list(dict.fromkeys(row.name for row in _TABLE))
    if name not in ("auto", *names):
        raise InputError(f"unknown attention backend {name!r}", hint=f"auto, {', '.join(names)}")
    refused: list[str] = []
    for row in _TABLE:
        if name not in ("auto", row.name) or not row.suits(device, dtype):
            continue
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            tried = _try(row, device, dtype, config)
        if not isinstance(tried, str):
            reason = "; ".join([f"{dtype} on {device}: {row.what}", *refused])
            return Backend(*tried, reason if name == "auto" else "asked for")
        refused.append(f"{row.name} does not run: {tried}")
    raise InputError(
        f"attention backend {name!r} cannot run {dtype} on {device}",
        hint="; ".join(["`auto` takes one that does", *refused]),
    )


def _try(
    row: _Row, device: torch.device, dtype: torch.dtype, config: ModelConfig
) -> tuple[Attention, Kernels] | str:
    """Return the parts of a backend where it runs, else the reason."""
    attention, elementwise = row.attention(), Kernels()
    if row.fused:
        runs, reason = kernels.available()
        if not runs:
            return reason
        try:
            elementwise = kernels.fused()
        except ImportError as error:
            return in_one_line(error)
    # Behind a call a sequence there is nothing: what it raises is the answer.
    is_last = row.attention is SequenceAttention
    refusal = None if is_last else why_not(attention, elementwise, device, dtype, config)
    return refusal or (attention, elementwise)
