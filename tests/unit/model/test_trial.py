"""Trying a backend: what runs and is right passes, and everything else has a reason."""

import os
import subprocess
import sys
import time
from dataclasses import fields

import pytest
import torch

from virnucpro.model.attention import SequenceAttention
from virnucpro.model.config import KNOWN_MODELS, ModelConfig
from virnucpro.model.kernels import Kernels, reference
from virnucpro.model.trial import Agreement, compare, in_one_line, why_not

CPU = torch.device("cpu")
CONFIG = ModelConfig("tiny", layers=1, dim=320, heads=20)
FINISHED = Kernels(layer_norm=lambda *given: reference.layer_norm(*given))  # not the references


class Leaking(SequenceAttention):
    """Every sequence sees the first token of the next one."""

    def prepare(self, sequences):
        angles, ranges = super().prepare(sequences)
        return angles, [(a, b + (b < 80)) for a, b in ranges]

    def __call__(self, qkv, segments):
        angles, ranges = segments
        parts = [
            super(Leaking, self).__call__(qkv[a:b], (angles[a:b], [(0, b - a)])) for a, b in ranges
        ]
        return torch.cat(
            [part[: b - a - (b < 80)] for part, (a, b) in zip(parts, ranges, strict=True)]
        )


class Unrotated(SequenceAttention):
    def __call__(self, qkv, segments):
        return super().__call__(qkv, (torch.ones_like(segments[0]), segments[1]))


class NotFinite(SequenceAttention):
    def __call__(self, qkv, segments):
        return super().__call__(qkv, segments) * float("nan")


def failing(error):
    class Failing(SequenceAttention):
        def __call__(self, qkv, segments):
            raise error

    return Failing()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("config", KNOWN_MODELS.values(), ids=lambda config: config.name)
def test_what_is_right_passes_for_every_model(config, dtype):
    start = time.process_time()
    assert why_not(SequenceAttention(), FINISHED, CPU, dtype, config) is None
    assert time.process_time() - start < 2  # a start is to take much less; this is a busy machine


@pytest.mark.parametrize("attention", [Leaking, Unrotated, NotFinite])
def test_what_is_wrong_says_by_how_much(attention):
    reason = why_not(attention(), Kernels(), CPU, torch.float16, CONFIG)
    assert reason.startswith("attention is off by ")


@pytest.mark.parametrize("name", ["layer_norm", "linear_gelu", "pool_mean"])
@pytest.mark.parametrize("factor", [1.1, float("nan")])
def test_each_elementwise_kernel_is_tried(name, factor):
    wrong = Kernels(**{name: lambda *given: getattr(reference, name)(*given) * factor})
    reason = why_not(SequenceAttention(), wrong, CPU, torch.bfloat16, CONFIG)
    assert reason.startswith(f"{name} is off by nan" if factor != 1.1 else f"{name} is off by 0.")


@pytest.mark.fault(57)
@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (
            RuntimeError("CUDA error: no kernel image is available\n  for execution"),
            "RuntimeError: CUDA error: no kernel image is available for execution",
        ),
        (ValueError("D of [16]"), "ValueError: D of [16]"),
        (KeyError("maxnreg"), "KeyError: 'maxnreg'"),
        (NotImplementedError(), "NotImplementedError: "),
    ],
)
def test_what_fails_says_why_in_one_line(error, reason):
    assert why_not(failing(error), Kernels(), CPU, torch.float16, CONFIG) == reason
    assert len(in_one_line(RuntimeError("word " * 1000))) == 160


def test_a_full_device_says_nothing_of_the_backend():
    with pytest.raises(torch.cuda.OutOfMemoryError):
        why_not(
            failing(torch.cuda.OutOfMemoryError("CUDA out of memory")),
            *(Kernels(), CPU, torch.float16, CONFIG),
        )


NAMES = [field.name for field in fields(Kernels)]


def altered(name, change):
    """All references, under other names, and one of them with its results changed."""

    def changed(found):
        if isinstance(found, tuple):
            return tuple(map(changed, found))
        return change(found) if found.dtype != torch.float8_e4m3fn else found

    def copy(each):
        original = getattr(Kernels(), each)
        if each == name and change:
            return lambda *arguments: changed(original(*arguments))
        return lambda *arguments: original(*arguments)

    return Kernels(**{each: copy(each) for each in NAMES})


def compared(kernels, dtype, float8):
    return compare(SequenceAttention(), kernels, CPU, dtype, CONFIG, float8=float8)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_every_kernel_that_is_right_holds(dtype):
    found = compared(altered(NAMES[0], None), dtype, float8=True)
    assert {agreement.name for agreement in found} == {"attention", *NAMES}
    assert all(agreement.holds for agreement in found), [str(each) for each in found]


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x * 1.1,
        lambda x: torch.full_like(x, float("nan")),
        lambda x: x.roll(1, 0),
        lambda x: x[:1],
    ],
    ids=["scaled", "nan", "rows shifted", "rows missing"],
)
@pytest.mark.parametrize("name", NAMES)
def test_a_kernel_that_is_wrong_does_not_hold(name, change):
    found = compared(altered(name, change), torch.bfloat16, float8=True)
    assert [agreement.name for agreement in found if not agreement.holds] == [name]


def test_references_themselves_are_not_compared_nor_float8_where_there_is_none():
    (only,) = compared(Kernels(), torch.float16, float8=True)
    assert only.name == "attention"
    found = compared(altered(NAMES[0], None), torch.float16, float8=False)
    names = {agreement.name for agreement in found}
    assert names == {"attention", *(name for name in NAMES if "float8" not in name)}


def test_not_a_number_does_not_hold():
    assert not Agreement("x", float("nan"), 1.0).holds


INTERPRETED = """
import sys
import numpy, torch
from virnucpro.model import kernels
from virnucpro.model.attention import TileAttention
from virnucpro.model.config import ModelConfig
from virnucpro.model.trial import why_not

class OnTheCPU(TileAttention):
    def prepare(self, sequences):
        block, bounds = kernels.QUERY_BLOCK, sequences.cu_seqlens.numpy()
        capacity = kernels.tile_capacity(len(sequences.positions), len(bounds) - 1, block)
        return *sequences.rotary, torch.from_numpy(kernels.attention_tiles(bounds, block, capacity))

for dim, heads in ((72, 3), (80, 2)):
    config = ModelConfig("tiny", 1, dim, heads)
    print(why_not(OnTheCPU(), kernels.fused(), torch.device("cpu"), torch.float16, config))
"""


@pytest.mark.fault(57)
def test_our_kernels_pass_and_have_none_for_some_head_dimensions():
    """In Triton's interpreter, which runs them without a GPU."""
    pytest.importorskip("triton")
    done = subprocess.run(
        [sys.executable, "-c", INTERPRETED],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    passed, refused = done.stdout.splitlines()
    assert passed == "None"
    assert refused.startswith(
        "ValueError: qkv must be [T, 3, H, D] with D of [16, 24, 32, 64, 128]"
    )
