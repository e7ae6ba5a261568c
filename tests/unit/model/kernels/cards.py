"""The cards that the kernels are compiled for, and compiling what the launchers ask for."""

from __future__ import annotations

import contextlib
import io
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from virnucpro.model.kernels import QUERY_BLOCK, attention_tiles

pytest.importorskip("triton")

from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

KIB = 1024


@dataclass(frozen=True)
class Card:
    """A generation of cards.

    Attributes:
        name: compute capability, or AMD's name of the architecture.
        target: what Triton is told.
        shared: bytes of shared memory that a program may have.
        float8: whether float8 is offered there.
        spills: whether registers may spill: on what the audience has, they may not.
    """

    name: str
    target: GPUTarget
    shared: int
    float8: bool
    spills: bool = False


def nvidia(capability: int, shared: int, **facts: bool) -> Card:
    name = f"{capability // 10}.{capability % 10}"
    target = GPUTarget("cuda", capability, 32)
    return Card(name, target, shared * KIB, float8=capability >= 89, **facts)


CARDS = (
    nvidia(80, 163),  # A100
    nvidia(86, 99),  # RTX 3090, A10, A6000
    nvidia(89, 99),  # RTX 4090, L4, L40S
    nvidia(90, 227),  # H100, H200
    nvidia(100, 227, spills=True),  # B200: 72 bytes at head dimensions 24 and 32
    nvidia(120, 99),  # RTX 5090
    Card("gfx90a", GPUTarget("hip", "gfx90a", 64), 64 * KIB, float8=False),  # MI250
    Card("gfx942", GPUTarget("hip", "gfx942", 64), 64 * KIB, float8=False),  # MI300
)


@dataclass(frozen=True)
class Compiled:
    """What the assembler says of a kernel."""

    name: str
    shared: int  # bytes a program
    registers: int  # of a thread
    spilled: int  # bytes on a card of NVIDIA, registers on one of AMD


class NoDevice:
    """A driver of a card that is not there."""

    numbers = itertools.count(1000)  # Triton keeps what it compiled by the device's number

    def __init__(self, target: GPUTarget) -> None:
        self.target, self.number = target, next(self.numbers)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return self.number

    def get_current_stream(self, _device: int) -> int:
        return 0


@contextlib.contextmanager
def compiling(card: Card, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Compiled]]:
    """Compile what is launched for a card instead of running it; gives what was compiled."""
    run = JITFunction.run
    compiled: list[Compiled] = []

    def compile_only(self: Any, *args: Any, warmup: bool, **options: Any) -> Any:
        log = io.StringIO()
        with contextlib.redirect_stdout(log):
            kernel = run(self, *args, warmup=True, **options)
        if log.getvalue() or "amdgcn" in kernel.asm:  # else it was compiled a moment ago
            compiled.append(report(kernel, log.getvalue()))
        return kernel

    with monkeypatch.context() as patched:
        patched.setattr(driver, "_active", NoDevice(card.target))
        patched.setattr(JITFunction, "run", compile_only)
        patched.setattr(knobs.nvidia, "dump_ptxas_log", True)
        yield compiled


def report(kernel: Any, log: str) -> Compiled:
    """Read what ptxas printed, or what AMD's assembly says of itself."""
    if "amdgcn" in kernel.asm:
        text = kernel.asm["amdgcn"]
        (registers,) = re.findall(r"^ +\.vgpr_count: +(\d+)$", text, re.MULTILINE)
        spilled = re.findall(r"^ +\.[sv]gpr_spill_count: +(\d+)$", text, re.MULTILINE)
        assert len(spilled) == 2
    else:
        (registers,) = re.findall(r"Used (\d+) registers", log)
        spilled = re.findall(r"(\d+) bytes spill", log)
        assert len(spilled) == 2  # stores and loads
    return Compiled(
        kernel.metadata.name, kernel.metadata.shared, int(registers), sum(map(int, spilled))
    )


def launch_attention(heads: int, head_dim: int, dtype: torch.dtype) -> None:
    """Launch what a layer launches, on memory of the CPU that nobody reads."""
    from virnucpro.model.kernels.attention import packed_attention

    qkv = torch.empty(16, 3, heads, head_dim, dtype=dtype)
    angles = torch.empty(16, head_dim // 2)
    tiles = attention_tiles(np.array([0, 16], dtype=np.int32), QUERY_BLOCK, 16)
    packed_attention(qkv, angles, angles, torch.from_numpy(tiles))


def launch_elementwise(dim: int, dtype: torch.dtype, *, float8: bool) -> None:
    """Launch what stands between the products of a layer, the head and the pooling."""
    from virnucpro.model.kernels import elementwise

    x, hidden = torch.empty(16, dim, dtype=dtype), torch.empty(16, 4 * dim, dtype=dtype)
    weight, bias, shift = x[0], hidden[0], torch.empty(dim)
    for deferred in (None, shift):
        elementwise.layer_norm(x, weight, weight, 1e-5, deferred)
    elementwise.bias_gelu(hidden, bias, inplace=True)
    elementwise.bias_gelu(x, weight, inplace=True)
    elementwise.pool_mean(x, torch.zeros(3, 2, dtype=torch.int32))
    if float8:
        for deferred in (None, shift):
            elementwise.layer_norm_float8(x, weight, weight, 1e-5, deferred)
        elementwise.bias_gelu_float8(hidden, bias)
