"""The usual ways of batching, counted by length, against the plain loops."""

import esm
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from virnucpro.plan import baselines
from virnucpro.plan.baselines import (
    next_fit_decreasing_bins,
    sorted_padding_tokens,
    unsorted_padding_tokens,
)


@st.composite
def problems(draw):
    budget = draw(st.integers(1, 90))
    longest = draw(st.integers(1, budget))
    return np.array(draw(st.lists(st.integers(1, longest), max_size=80)), np.int64), budget


def naive_next_fit_decreasing(tokens, budget):
    bins, space = 0, 0
    for size in sorted(tokens.tolist(), reverse=True):
        if size > space:
            bins, space = bins + 1, budget
        space -= size
    return bins


def naive_padding(tokens, budget):
    batches = [[]]
    for size in tokens.tolist():
        if max([size, *batches[-1]]) * (len(batches[-1]) + 1) > budget:
            batches.append([])
        batches[-1].append(size)
    return sum(len(batch) * max(batch) for batch in batches if batch)


@settings(max_examples=300, deadline=None)
@given(problems())
def test_next_fit_decreasing_equals_the_plain_loop(problem):
    assert next_fit_decreasing_bins(*problem) == naive_next_fit_decreasing(*problem)


@settings(max_examples=300, deadline=None)
@given(problems())
def test_sorted_padding_equals_the_plain_loop(problem):
    tokens, budget = problem
    assert sorted_padding_tokens(tokens, budget) == naive_padding(np.sort(tokens), budget)


@settings(max_examples=100, deadline=None)
@given(problems(), st.sampled_from([3, 7, 1000]))
def test_unsorted_padding_equals_the_plain_loop_whatever_the_block(problem, block):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(baselines, "_BLOCK", block)
        assert unsorted_padding_tokens(*problem) == naive_padding(*problem)


@settings(max_examples=50, deadline=None)
@given(problems())
def test_sorted_padding_is_what_fair_esm_computes(problem):
    tokens, budget = problem
    data = esm.data.FastaBatchedDataset(
        [str(i) for i in range(len(tokens))], ["M" * (size - 1) for size in tokens.tolist()]
    )
    batches = data.get_batch_indices(budget, extra_toks_per_seq=1)
    computed = sum(len(batch) * int(tokens[batch].max()) for batch in batches)
    assert sorted_padding_tokens(tokens, budget) == computed


@pytest.mark.parametrize(
    "function", [next_fit_decreasing_bins, sorted_padding_tokens, unsorted_padding_tokens]
)
def test_items_that_fit_no_batch_are_refused(function):
    assert function(np.array([1, 10]), 10) > 0
    for tokens in ([11], [0]):
        with pytest.raises(ValueError, match="expected 1 to 10"):
            function(np.array(tokens), 10)
