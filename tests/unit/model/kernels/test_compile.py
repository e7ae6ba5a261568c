"""Every kernel, compiled and assembled for every card, without a GPU.

What is compiled is what the launchers ask for, so an option that a compiler refuses, a block that
does not fit, or a register too many shows here and not in the first job on such a card.
"""

import pytest
import torch

from virnucpro.model.config import KNOWN_MODELS

pytest.importorskip("triton")

from tests.unit.model.kernels.cards import (
    CARDS,
    Card,
    compiling,
    launch_attention,
    launch_elementwise,
)
from virnucpro.model.kernels import attention, elementwise

DTYPES = [torch.float16, torch.bfloat16]
SHAPES = sorted({(config.heads, config.head_dim) for config in KNOWN_MODELS.values()})
DIMS = sorted({config.dim for config in KNOWN_MODELS.values()})
# Of the matrix, what is hardest: a head dimension whose registers are scarce, and the largest one,
# whose shared memory is.
SLICE = [(20, 32), (40, 128)]


@pytest.fixture(autouse=True)
def _compiled_anew(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


def check(card: Card, compiled):
    for kernel in compiled:
        assert kernel.shared <= card.shared, f"{kernel} on {card.name}"
        assert kernel.spilled == 0 or card.spills, f"{kernel} on {card.name}"
    return {kernel.name for kernel in compiled}


def attend(card, shape, dtype, monkeypatch):
    with compiling(card, monkeypatch) as compiled:
        launch_attention(*shape, dtype)
    assert check(card, compiled) == {"_rotate_keys_kernel", "_attention_kernel"}


def pass_over(card, dim, dtype, monkeypatch):
    with compiling(card, monkeypatch) as compiled:
        launch_elementwise(dim, dtype, float8=card.float8)
    names = {"_layer_norm_kernel", "_bias_gelu_kernel", "_pool_mean_kernel"}
    assert check(card, compiled) == names | ({"_bias_gelu_float8_kernel"} if card.float8 else set())


cards = pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)


@cards
@pytest.mark.parametrize("shape", SLICE, ids=str)
def test_attention_compiles_fits_and_does_not_spill(card, shape, monkeypatch):
    attend(card, shape, torch.float16, monkeypatch)


@cards
def test_passes_compile_fit_and_do_not_spill(card, monkeypatch):
    pass_over(card, 480, torch.bfloat16, monkeypatch)


@pytest.mark.long
@cards
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_attention_of_every_model_compiles_fits_and_does_not_spill(card, shape, dtype, monkeypatch):
    attend(card, shape, dtype, monkeypatch)


@pytest.mark.long
@cards
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dim", DIMS)
def test_passes_of_every_model_compile_fit_and_do_not_spill(card, dim, dtype, monkeypatch):
    pass_over(card, dim, dtype, monkeypatch)


def test_no_kernel_and_no_head_dimension_is_left_out():
    kernels = {
        name for module in (attention, elementwise) for name in vars(module) if "_kernel" in name
    }
    assert kernels == {
        "_rotate_keys_kernel",
        "_attention_kernel",
        "_layer_norm_kernel",
        "_bias_gelu_kernel",
        "_bias_gelu_float8_kernel",
        "_pool_mean_kernel",
    }
    assert {head_dim for _, head_dim in SHAPES} == {16, 24, 32, 64, 128}
    assert set(attention._CONFIGS) == {16, 24, 32, 64, 128}
    assert set(SLICE) <= set(SHAPES)
