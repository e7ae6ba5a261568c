"""The choice of a backend: the fastest that runs, and the reason; a GPU is made up."""

import pytest
import torch

from virnucpro.errors import InputError
from virnucpro.model import backends, kernels
from virnucpro.model.backends import select_backend

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def gpu(monkeypatch):
    """A CUDA device of a capability, on which our kernels run or not."""

    class current_device:
        def __init__(self, _device):
            pass

        def __enter__(self):
            pass

        def __exit__(self, *_):
            pass

    def install(capability, kernels_run):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
        monkeypatch.setattr(torch.cuda, "device", current_device)
        monkeypatch.setattr(kernels, "available", lambda: (kernels_run, "Imaginary 1"))
        monkeypatch.setattr(kernels, "fused", lambda: "the fused kernels")

    return install


def test_a_cpu_takes_one_call_a_sequence_and_plain_torch():
    backend = select_backend("auto", CPU, torch.float32)
    assert (backend.name, backend.on_device) == ("sdpa", False)
    assert backend.kernels == kernels.Kernels()
    assert backend.reason == "torch.float32 on cpu: one call a sequence"


@pytest.mark.parametrize(
    ("capability", "kernels_run", "dtype", "expected"),
    [
        ((9, 0), True, torch.float16, "tiles"),
        ((8, 0), True, torch.bfloat16, "tiles"),
        ((9, 0), False, torch.float16, "varlen"),
        ((7, 5), True, torch.float16, "padded"),
        ((9, 0), True, torch.float32, "padded"),
    ],
)
def test_the_fastest_that_runs_is_taken(gpu, capability, kernels_run, dtype, expected):
    gpu(capability, kernels_run)
    backend = select_backend("auto", GPU, dtype)
    assert backend.name == expected
    fused = expected == "tiles"
    assert (backend.kernels == "the fused kernels") is fused
    assert ("Imaginary 1" in backend.reason) is fused


def test_one_that_is_asked_for_is_taken_in_place_of_a_faster_one(gpu):
    gpu((9, 0), True)
    backend = select_backend("varlen", GPU, torch.float16)
    assert (backend.name, backend.reason) == ("varlen", "asked for")
    assert backend.kernels == kernels.Kernels()


def test_one_that_cannot_run_is_refused_with_those_that_can():
    with pytest.raises(InputError, match=r"'tiles' cannot run torch\.float16 on cpu") as error:
        select_backend("tiles", CPU, torch.float16)
    assert "here padded, sdpa can" in error.value.hint


def test_one_that_does_not_exist_is_refused_with_those_that_do():
    with pytest.raises(InputError, match="unknown attention backend 'flash'") as error:
        select_backend("flash", CPU, torch.float32)
    assert error.value.hint == "auto, tiles, varlen, padded, sdpa"


def test_every_backend_has_a_reason_of_its_own(gpu):
    gpu((9, 0), True)
    usable = backends._usable(GPU, torch.float16)
    assert set(usable) == {attention.name for attention in backends._ATTENTION}
    assert len(set(usable.values())) == len(usable)
