import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from virnucpro.model.kernels.reference import pool_mean


@given(st.lists(st.integers(3, 40), min_size=1, max_size=12), st.integers(0, 2**31))
def test_mean_is_over_residues_only(lengths, seed):
    hidden = torch.from_numpy(
        np.random.default_rng(seed).normal(size=(sum(lengths), 5)).astype(np.float32)
    )
    bounds = torch.tensor(np.concatenate([[0], np.cumsum(lengths)]), dtype=torch.int32)
    expected = [
        hidden[a + 1 : b - 1].double().mean(0)
        for a, b in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)
    ]
    torch.testing.assert_close(pool_mean(hidden, bounds).double(), torch.stack(expected))


def test_empty_and_tiny_filler_segments_do_not_shift_the_others():
    hidden = torch.randn(10, 4)
    bounds = torch.tensor([0, 5, 6, 8, 10, 10, 10], dtype=torch.int32)
    pooled = pool_mean(hidden, bounds)
    assert pooled.shape == (6, 4)
    torch.testing.assert_close(pooled[0], hidden[1:4].mean(0))
    assert pooled[1:].isnan().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bit_input_is_summed_in_float32(dtype):
    hidden = torch.full((4098, 1), 100.0, dtype=dtype)
    pooled = pool_mean(hidden, torch.tensor([0, 4098], dtype=torch.int32))
    assert pooled.dtype == torch.float32
    assert pooled.item() == 100.0


def test_bits_do_not_depend_on_neighbours_or_place():
    torch.manual_seed(0)
    own, other = torch.randn(50, 8), torch.randn(70, 8) * 1e4
    alone = pool_mean(own, torch.tensor([0, 50]))[0]
    after = pool_mean(torch.cat([other, own]), torch.tensor([0, 70, 120]))[1]
    before = pool_mean(torch.cat([own, other]), torch.tensor([0, 50, 120]))[0]
    assert torch.equal(alone, after)
    assert torch.equal(alone, before)
