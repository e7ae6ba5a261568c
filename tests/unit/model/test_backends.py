"""The choice of a backend: the fastest that runs, and the reason; a GPU is made up."""

import contextlib

import pytest
import torch

from virnucpro.errors import InputError
from virnucpro.model import backends, kernels
from virnucpro.model.backends import select_backend
from virnucpro.model.config import ModelConfig

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
CONFIG = ModelConfig("tiny", layers=1, dim=320, heads=20)
NO_IMAGE = "RuntimeError: CUDA error: no kernel image is available"


@pytest.fixture
def gpu(monkeypatch):
    """Give a function that makes up a CUDA device by what does not run on it, and why."""

    def install(refusals, no_triton_kernels=None):
        tried = []

        def why_not(attention, elementwise, device, dtype, config):
            tried.append((attention.name, elementwise, device, dtype, config))
            return refusals.get(attention.name)

        available = no_triton_kernels is None, no_triton_kernels or "Imaginary 1"
        monkeypatch.setattr(torch.cuda, "device", contextlib.nullcontext)
        monkeypatch.setattr(kernels, "available", lambda: available)
        monkeypatch.setattr(kernels, "fused", lambda: "the fused kernels")
        monkeypatch.setattr(backends, "why_not", why_not)
        return tried

    return install


def test_a_cpu_takes_one_call_a_sequence_and_plain_torch():
    backend = select_backend("auto", CPU, torch.float32, CONFIG)
    assert (backend.name, backend.on_device) == ("sdpa", False)
    assert backend.kernels == kernels.Kernels()
    assert backend.reason == "torch.float32 on cpu: one call a sequence"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_the_fastest_that_runs_is_taken_and_no_other_is_tried(gpu, dtype):
    tried = gpu({})
    backend = select_backend("auto", GPU, dtype, CONFIG)
    assert (backend.name, backend.kernels) == ("tiles", "the fused kernels")
    assert backend.reason == f"{dtype} on cuda:0: kernels of our own"
    assert tried == [("tiles", "the fused kernels", GPU, dtype, CONFIG)]


@pytest.mark.fault(57)
@pytest.mark.parametrize(
    ("refusals", "no_triton_kernels", "name", "reason"),
    [
        (
            {"tiles": "ValueError: D of [16, 24]"},
            None,
            "varlen",
            "torch's variable-length kernel; tiles does not run: ValueError: D of [16, 24]",
        ),
        (
            {},
            "triton is not installed",
            "varlen",
            "torch's variable-length kernel; tiles does not run: triton is not installed",
        ),
        (
            {"varlen": NO_IMAGE},
            "Tesla T4 (compute capability 7.5): 8.0 or newer is needed",
            "padded",
            "one call for sequences of like length; tiles does not run: Tesla T4 (compute "
            f"capability 7.5): 8.0 or newer is needed; varlen does not run: {NO_IMAGE}",
        ),
        (
            {"tiles": "it is off by 1 from the reference", "varlen": NO_IMAGE},
            None,
            "padded",
            "one call for sequences of like length; tiles does not run: it is off by 1 from the "
            f"reference; varlen does not run: {NO_IMAGE}",
        ),
    ],
    ids=["head dimension", "no triton", "old card", "wrong numbers"],
)
def test_what_does_not_run_gives_way_to_the_next_and_the_reason_says_so(
    gpu, refusals, no_triton_kernels, name, reason
):
    gpu(refusals, no_triton_kernels)
    backend = select_backend("auto", GPU, torch.float16, CONFIG)
    assert (backend.name, backend.kernels) == (name, kernels.Kernels())
    assert backend.reason == f"torch.float16 on cuda:0: {reason}"


def test_a_triton_that_cannot_be_imported_gives_way(gpu, monkeypatch):
    def fused():
        raise ImportError("libcuda.so.1: cannot open shared object file")

    gpu({})
    monkeypatch.setattr(kernels, "fused", fused)
    backend = select_backend("auto", GPU, torch.float16, CONFIG)
    assert backend.name == "varlen"
    assert "tiles does not run: ImportError: libcuda.so.1" in backend.reason


def test_float32_and_other_devices_try_padded_calls_alone(gpu):
    tried = gpu({})
    for device, dtype in ((GPU, torch.float32), (torch.device("mps"), torch.float16)):
        assert select_backend("auto", device, dtype, CONFIG).name == "padded"
    assert [name for name, *_ in tried] == ["padded", "padded"]


def test_a_call_a_sequence_is_behind_all(gpu):
    gpu(dict.fromkeys(("tiles", "varlen", "padded"), "it is off"))
    backend = select_backend("auto", GPU, torch.float16, CONFIG)
    assert backend.name == "sdpa"
    assert backend.reason.endswith("padded does not run: it is off")


def test_one_that_is_asked_for_is_taken_in_place_of_a_faster_one(gpu):
    tried = gpu({})
    backend = select_backend("varlen", GPU, torch.float16, CONFIG)
    assert (backend.name, backend.reason) == ("varlen", "asked for")
    assert backend.kernels == kernels.Kernels()
    assert [name for name, *_ in tried] == ["varlen"]


def test_one_that_is_asked_for_and_does_not_run_is_refused_with_the_reason(gpu):
    with pytest.raises(InputError, match=r"'tiles' cannot run torch\.float16 on cpu"):
        select_backend("tiles", CPU, torch.float16, CONFIG)
    gpu({"varlen": NO_IMAGE})
    with pytest.raises(InputError, match=r"'varlen' cannot run torch\.float16 on cuda:0") as error:
        select_backend("varlen", GPU, torch.float16, CONFIG)
    assert error.value.hint == f"`auto` takes one that does; varlen does not run: {NO_IMAGE}"


def test_one_that_does_not_exist_is_refused_with_those_that_do():
    with pytest.raises(InputError, match="unknown attention backend 'flash'") as error:
        select_backend("flash", CPU, torch.float32, CONFIG)
    assert error.value.hint == "auto, tiles, varlen, sdpa, padded"


def test_the_last_of_the_table_suits_everything():
    last = backends._TABLE[-1]
    for device in (CPU, GPU, torch.device("mps"), torch.device("xpu")):
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            assert last.suits(device, dtype)
