"""The tile list: complete, without overlap, ordered by cost, within its capacity."""

from __future__ import annotations

import time
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from virnucpro.model.kernels import attention_tiles, tile_capacity

lengths_lists = st.lists(st.integers(0, 300), min_size=1, max_size=40)


def bounds(lengths):
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)


@given(lengths_lists, st.sampled_from([16, 64, 128]))
def test_every_token_is_a_query_row_of_exactly_one_tile(lengths, block):
    cu = bounds(lengths)
    tiles = attention_tiles(cu, block, tile_capacity(int(cu[-1]), len(lengths), block))
    seen = np.zeros(cu[-1], dtype=int)
    for start, length, first in tiles.T.tolist():
        assert first % block == 0
        seen[start + first : start + min(first + block, length)] += 1
    assert (seen == 1).all()


@given(lengths_lists, st.sampled_from([16, 64, 128]))
def test_tiles_carry_their_sequence_and_no_other_bounds(lengths, block):
    cu = bounds(lengths)
    tiles = attention_tiles(cu, block, tile_capacity(int(cu[-1]), len(lengths), block))
    known = {(int(a), int(b - a)) for a, b in pairwise(cu)}
    assert {(s, n) for s, n, _ in tiles.T.tolist() if n} <= known


@given(lengths_lists)
def test_longest_sequences_come_first_and_empty_tiles_last(lengths):
    tiles = attention_tiles(bounds(lengths), 64, 400)
    assert (np.diff(tiles[1]) <= 0).all()
    assert (tiles[:, tiles[1] == 0] == 0).all()


@given(lengths_lists, st.sampled_from([1, 16, 64, 128]))
def test_capacity_of_a_shape_holds_any_batch_of_it(lengths, block):
    needed = sum(-(-n // block) for n in lengths)
    assert tile_capacity(sum(lengths), len(lengths), block) >= needed
    assert tile_capacity(sum(lengths) + 50, len(lengths) + 3, block) >= needed


def test_capacity_is_reached_by_the_worst_batch():
    # 64 + 1 tokens: each sequence wastes as much of its second tile as it can.
    assert tile_capacity(10 * 65, 10, 64) == 20


def test_too_many_tiles_are_refused_not_dropped():
    with pytest.raises(ValueError, match="3 tiles of 64 rows do not fit a capacity of 2"):
        attention_tiles(bounds([130]), 64, 2)


def test_list_is_int32_of_fixed_width_and_repeats_exactly():
    cu = bounds([65, 3, 65, 1000])
    tiles = attention_tiles(cu, 64, 40)
    assert tiles.shape == (3, 40)
    assert tiles.dtype == np.int32
    assert (tiles == attention_tiles(cu.copy(), 64, 40)).all()
    # Equal lengths keep the batch's order.
    assert tiles[0, 16:20].tolist() == [0, 0, 68, 68]


def test_batch_without_sequences_makes_empty_tiles():
    assert not attention_tiles(np.zeros(1, dtype=np.int32), 64, 5).any()


def test_listing_a_step_takes_well_under_a_millisecond():
    lengths = np.random.default_rng(0).integers(20, 60, 400)
    cu = bounds(lengths)
    best = np.inf
    for _ in range(20):
        start = time.perf_counter()
        attention_tiles(cu, 64, 800)
        best = min(best, time.perf_counter() - start)
    assert best < 1e-3
