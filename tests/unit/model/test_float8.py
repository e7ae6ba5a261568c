"""The float8 model on a CPU, by the kernels' reference implementations; on a GPU see tests/gpu."""

import pytest
import torch

from tests.unit.embed.builders import random_state
from virnucpro.errors import InputError
from virnucpro.model.config import ModelConfig
from virnucpro.model.devices import dtype_name, select_dtype
from virnucpro.model.loading import build_model

CONFIG = ModelConfig("demo", 6, 320, 20)


@pytest.fixture(scope="module")
def models():
    state = random_state(CONFIG)
    return build_model(CONFIG, state), build_model(CONFIG, state, dtype=torch.float8_e4m3fn)


def test_float8_is_close_to_float32_and_not_the_same(models):
    lengths = torch.tensor([40, 3, 90])
    bounds = torch.cat((torch.zeros(1, dtype=torch.long), lengths.cumsum(0))).int()
    tokens = torch.randint(4, 24, (133,), generator=torch.Generator().manual_seed(0))
    positions = torch.cat([torch.arange(n) for n in lengths])
    exact, coarse = (model(tokens, positions, bounds, 90, [3, -1])[6].float() for model in models)
    cosines = torch.cosine_similarity(exact, coarse, dim=1)
    assert 0.99 < float(cosines.min()) < 0.99999


def test_name_and_memory_are_those_of_float8(models):
    exact, coarse = models
    assert (coarse.precision, dtype_name(torch.float8_e4m3fn)) == ("float8", "float8")
    assert (exact.precision, coarse.dtype) == ("float32", torch.bfloat16)
    kept = {name for name, _ in coarse.blocks[0].named_parameters()}
    assert kept.isdisjoint({"fc1.weight", "fc2.weight"})
    assert coarse.blocks[0].qkv_proj.weight.dtype == torch.bfloat16


def test_attention_has_the_bits_of_bfloat16(models):
    wide = build_model(CONFIG, random_state(CONFIG), dtype=torch.bfloat16)
    x = torch.randn(40, 320, generator=torch.Generator().manual_seed(0)).bfloat16()
    segments = wide.prepare(torch.arange(40), torch.tensor([0, 40]).int(), 40)
    mine, theirs = x.clone(), x.clone()
    models[1].blocks[0].add_attention(mine, segments)
    wide.blocks[0].add_attention(theirs, segments)
    assert torch.equal(mine, theirs)


def test_a_device_without_float8_refuses_it():
    with pytest.raises(InputError, match="float8 cannot run on cpu"):
        select_dtype("float8", torch.device("cpu"))
