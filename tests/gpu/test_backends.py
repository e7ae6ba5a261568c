"""The choice of device, dtype and backend on a real CUDA device. Run with ``pytest -m gpu``."""

import time

import pytest
import torch

from virnucpro.model.backends import select_backend
from virnucpro.model.config import KNOWN_MODELS, ModelConfig
from virnucpro.model.devices import select_device, select_dtype

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

MODELS = pytest.mark.parametrize("config", KNOWN_MODELS.values(), ids=lambda config: config.name)
AMPERE = pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 0),
    reason="our kernels need a device of compute capability 8.0",
)


@AMPERE
@MODELS
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_our_kernels_are_taken_for_every_model(config, dtype):
    device, _ = select_device("auto")
    backend = select_backend("auto", device, dtype, config)
    assert backend.name == "tiles", backend.reason
    assert backend.reason == f"{dtype} on cuda:0: kernels of our own"


@AMPERE
@MODELS
def test_a_trial_with_compiled_kernels_takes_little_of_a_start(config):
    device, _ = select_device("auto")
    select_backend("auto", device, torch.float16, config)
    start = time.perf_counter()
    select_backend("auto", device, torch.float16, config)
    assert time.perf_counter() - start < 0.3


@AMPERE
@MODELS
@pytest.mark.parametrize("name", ["tiles", "varlen", "sdpa"])
def test_each_backend_can_be_forced(config, name):
    device, _ = select_device("auto")
    assert select_backend(name, device, torch.float16, config).name == name


@pytest.mark.fault(57)
@AMPERE
def test_a_head_dimension_without_a_kernel_takes_the_next_backend():
    device, _ = select_device("auto")
    backend = select_backend("auto", device, torch.float16, ModelConfig("odd", 1, 240, 6))
    assert backend.name == "varlen"
    assert "tiles does not run: ValueError: qkv must be [T, 3, H, D]" in backend.reason


@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 9),
    reason="float8 needs a device of compute capability 8.9",
)
def test_float8_is_offered_where_it_runs():
    device, _ = select_device("auto")
    assert select_dtype("float8", device) == (torch.float8_e4m3fn, "asked for")
