import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from virnucpro.model.kernels.reference import pool_max, pool_mean


def ranges_of(*pairs):
    return torch.tensor(pairs, dtype=torch.int32).reshape(-1, 2)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 40)), max_size=12), st.integers(0, 9))
def test_each_range_is_pooled_by_itself(gaps_and_lengths, left):
    edges = np.cumsum([size for pair in gaps_and_lengths for size in pair], dtype=np.int32)
    ranges = torch.from_numpy(edges.reshape(-1, 2).copy())
    hidden = torch.from_numpy(
        np.random.default_rng(left).normal(size=(int(edges.max(initial=0)) + left, 5))
    ).float()
    hidden[np.setdiff1d(np.arange(len(hidden)), rows_of(ranges))] = float("nan")  # not to be read
    parts = [hidden[first:end].double() for first, end in ranges.tolist()]
    means, largest = pool_mean(hidden, ranges), pool_max(hidden, ranges)
    assert means.shape == largest.shape == (len(parts), 5)
    for mean, most, part in zip(means, largest, parts, strict=True):
        torch.testing.assert_close(mean.double(), part.mean(0))
        assert torch.equal(most.double(), part.amax(0))


def rows_of(ranges):
    return [row for first, end in ranges.tolist() for row in range(first, end)]


def test_empty_ranges_have_no_mean_and_do_not_shift_the_others():
    hidden = torch.randn(10, 4)
    ranges = ranges_of((1, 4), (5, 5), (6, 9), (10, 10), (10, 10))
    pooled = pool_mean(hidden, ranges)
    torch.testing.assert_close(
        pooled[[0, 2]], torch.stack((hidden[1:4].mean(0), hidden[6:9].mean(0)))
    )
    assert pooled[[1, 3, 4]].isnan().all()
    assert pool_max(hidden, ranges)[[1, 3, 4]].isneginf().all()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_shows(value):
    hidden = torch.randn(9, 3)
    hidden[4, 1] = value
    for pool in (pool_mean, pool_max):
        pooled = pool(hidden, ranges_of((0, 3), (3, 6), (6, 9)))
        assert pooled.isfinite().tolist() == [[True] * 3, [True, False, True], [True] * 3]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bit_input_is_summed_in_float32(dtype):
    hidden = torch.full((4098, 1), 100.0, dtype=dtype)
    pooled = pool_mean(hidden, ranges_of((1, 4097)))
    assert pooled.dtype == torch.float32
    assert pooled.item() == 100.0


def test_bits_do_not_depend_on_neighbours_or_place():
    torch.manual_seed(0)
    own, other = torch.randn(50, 8), torch.randn(70, 8) * 1e4
    alone = pool_mean(own, ranges_of((1, 49)))[0]
    after = pool_mean(torch.cat([other, own]), ranges_of((1, 69), (71, 119)))[1]
    before = pool_mean(torch.cat([own, other]), ranges_of((1, 49), (51, 119)))[0]
    assert torch.equal(alone, after)
    assert torch.equal(alone, before)


def test_devices_that_cannot_reduce_segments_leave_it_to_the_cpu():
    """Those of Apple and Intel; the device that has no values stands for them."""
    with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):
        pool_mean(torch.empty(4, 3, device="meta"), ranges_of((1, 3)))
