"""Packing: First-Fit Decreasing on the histogram, the packer, the token budget."""

import copy
import logging
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from virnucpro.data import GreedyPacker, calculate_token_budget
from virnucpro.data.packing import first_fit_decreasing
from virnucpro.plan.first_fit import batch_offsets, longest_first

GB = 1024**3


def naive_first_fit_decreasing(tokens, budget):
    """First-Fit Decreasing as a textbook has it: the item numbers of each bin."""
    bins, space = [], []
    for item in sorted(range(len(tokens)), key=lambda index: (-tokens[index], index)):
        for number, left in enumerate(space):
            if tokens[item] <= left:
                bins[number].append(item)
                space[number] -= tokens[item]
                break
        else:
            bins.append([item])
            space.append(budget - tokens[item])
    return bins


def as_lists(order, batch):
    offsets = batch_offsets(batch)
    return [order[a:b].tolist() for a, b in pairwise(offsets)]


@st.composite
def packing_problems(draw):
    budget = draw(st.integers(1, 120))
    longest = draw(st.integers(1, budget))
    return draw(st.lists(st.integers(1, longest), max_size=150)), budget


def proteins(number, seed=0):
    """Tokens of proteins: log-normal lengths, as in viral protein databases."""
    lengths = np.random.default_rng(seed).lognormal(5.45, 0.75, number)
    return np.clip(lengths, 20, 1022).astype(np.int64) + 2


def sequence(name, length, **more):
    return {"id": name, "sequence": "M" * length, **more}


def random_sequences(number, longest=1022, seed=0):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, longest + 1, number).tolist()
    return [
        sequence(f"s{i}", length)
        for i, length in zip(rng.permutation(number), lengths, strict=True)
    ]


class TestFirstFitDecreasing:
    @settings(max_examples=400, deadline=None)
    @given(packing_problems())
    def test_bins_items_and_order_equal_the_naive_algorithm(self, problem):
        tokens, budget = problem
        order, batch = first_fit_decreasing(np.array(tokens, np.int64), budget)
        assert as_lists(order, batch) == naive_first_fit_decreasing(tokens, budget)

    def test_many_different_lengths_equal_the_naive_algorithm(self):
        tokens = np.random.default_rng(1).integers(1, 5000, 3000)
        order, batch = first_fit_decreasing(tokens, 9000)
        assert as_lists(order, batch) == naive_first_fit_decreasing(tokens.tolist(), 9000)

    def test_bins_with_just_the_shortest_length_left_are_still_filled(self):
        tokens = np.array([*range(900, 500, -1), 1])
        order, batch = first_fit_decreasing(tokens, 901)
        assert as_lists(order, batch)[0] == [0, 400]

    def test_lengths_that_do_not_fit_16_bits_are_sorted_too(self):
        tokens = np.array([70_000, 3, 65_536, 65_535, 70_000])
        order, batch = first_fit_decreasing(tokens, 140_003)
        assert as_lists(order, batch) == [[0, 4, 1], [2, 3]]

    def test_an_item_goes_into_the_first_bin_that_it_fits_not_into_the_last(self):
        # Next-fit decreasing opens a third batch for the last item.
        order, batch = first_fit_decreasing(np.array([6, 5, 4]), 10)
        assert as_lists(order, batch) == [[0, 2], [1]]

    @pytest.mark.parametrize("budget", [4096, 16384, 65536])
    @pytest.mark.parametrize("number", [1000, 50_000, 1_000_000])
    def test_batches_of_proteins_stay_at_the_lower_bound(self, number, budget):
        tokens = proteins(number)
        _, batch = first_fit_decreasing(tokens, budget)
        bound = -(-int(tokens.sum()) // budget)
        assert int(batch[-1]) + 1 <= bound + max(1, bound // 1000)

    def test_no_items_no_batches(self):
        order, batch = first_fit_decreasing(np.array([], np.int64), 10)
        assert as_lists(order, batch) == []

    @pytest.mark.parametrize(
        ("tokens", "message"),
        [
            ([3, 11], r"item 1 has 11 tokens, more than the budget of 10"),
            ([0, 3], r"item 0 has 0 tokens"),
            ([2, -1], r"item 1 has -1 tokens"),
            ([1.5], r"expected whole numbers"),
            ([[1]], r"2 dimensions"),
        ],
    )
    def test_items_that_cannot_be_packed_are_refused(self, tokens, message):
        with pytest.raises(ValueError, match=message):
            first_fit_decreasing(np.array(tokens), 10)

    @given(st.lists(st.integers(0, 300), max_size=60))
    def test_longest_first_keeps_the_order_of_ties(self, lengths):
        expected = sorted(range(len(lengths)), key=lambda index: -lengths[index])
        assert longest_first(np.array(lengths, np.int64)).tolist() == expected


class TestGreedyPacker:
    def test_every_sequence_comes_out_once_after_the_first_overflow(self):
        # A published packer stops at the first sequence that does not fit and drops the rest.
        sequences = [sequence("a", 60), sequence("b", 60), sequence("c", 30), sequence("d", 30)]
        batches = GreedyPacker(100, 98).pack_sequences(sequences)
        assert [[item["id"] for item in batch] for batch in batches] == [["a", "c"], ["b", "d"]]

    def test_nothing_comes_twice_when_batches_are_exactly_full(self):
        # `sequences[-0:]` is all of them, which a published packer carries over once more.
        sequences = [sequence(f"s{i}", 48) for i in range(6)]
        batches = GreedyPacker(100, 98).pack_sequences(sequences)
        assert [len(batch) for batch in batches] == [2, 2, 2]
        assert sorted(item["id"] for batch in batches for item in batch) == [
            f"s{i}" for i in range(6)
        ]

    def test_no_batch_is_over_the_budget_and_nothing_is_lost(self):
        sequences = random_sequences(700)
        batches = GreedyPacker(4096).pack_sequences(sequences)
        sizes = [sum(len(item["sequence"]) + 2 for item in batch) for batch in batches]
        assert max(sizes) <= 4096
        found = [item["id"] for batch in batches for item in batch]
        assert sorted(found) == sorted(item["id"] for item in sequences)

    def test_batches_do_not_depend_on_the_order_given(self):
        sequences = random_sequences(300, longest=40)
        packer = GreedyPacker(128, 40)
        assert packer.pack_sequences(sequences) == packer.pack_sequences(sequences[::-1])

    def test_too_long_sequences_are_cut_flagged_and_told(self, caplog):
        given_ = [sequence("long", 30, note="kept"), sequence("short", 5)]
        given_[0]["sequence"] = "M" + "A" * 9 + "W" * 20
        before = copy.deepcopy(given_)
        with caplog.at_level(logging.WARNING):
            ((cut, short),) = GreedyPacker(100, 10).pack_sequences(given_)
        assert cut == {"id": "long", "sequence": "M" + "A" * 9, "note": "kept", "truncated": True}
        assert "truncated" not in short
        assert given_ == before
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert "long" in caplog.text
        assert "exceeds max_length" in caplog.text

    def test_a_sequence_of_just_the_maximum_is_not_cut(self, caplog):
        ((item,),) = GreedyPacker(12, 10).pack_sequences([sequence("a", 10)])
        assert item == sequence("a", 10)
        assert not caplog.records

    def test_the_list_given_is_not_sorted_in_place(self):
        sequences = [sequence("a", 1), sequence("b", 3), sequence("c", 2)]
        GreedyPacker(100, 10).pack_sequences(sequences)
        GreedyPacker(100, 10).sort_by_length(sequences)
        assert [item["id"] for item in sequences] == ["a", "b", "c"]

    def test_sorting_is_longest_first_ties_by_id_then_in_the_order_given(self):
        sequences = [
            sequence("b", 2),
            sequence("a", 2, number=1),
            sequence("c", 3),
            sequence("a", 2, number=2),
        ]
        result = GreedyPacker(100, 10).sort_by_length(sequences)
        assert [(item["id"], item.get("number")) for item in result] == [
            ("c", None),
            ("a", 1),
            ("a", 2),
            ("b", None),
        ]

    def test_empty_in_empty_out(self):
        packer = GreedyPacker(4096)
        assert packer.pack_sequences([]) == []
        assert packer.sort_by_length([]) == []
        assert packer.compute_efficiency([]) == 0.0

    def test_efficiency_counts_begin_and_end_tokens(self):
        packer = GreedyPacker(100, 98)
        assert packer._tokenized_length("MKV") == 5
        assert packer.compute_efficiency([[sequence("a", 98)], [sequence("b", 23)]]) == 0.625

    def test_efficiency_never_exceeds_one(self):
        batch = [sequence("a", 58), sequence("b", 58)]
        with pytest.raises(ValueError, match=r"batch 1 has 120 tokens"):
            GreedyPacker(100, 98).compute_efficiency([batch[:1], batch])

    @pytest.mark.parametrize("name", ["max_tokens", "max_tokens_per_batch"])
    def test_the_budget_is_one_value_under_two_names(self, name):
        packer = GreedyPacker(max_tokens_per_batch=200, max_sequence_length=98)
        assert packer.max_tokens == packer.max_tokens_per_batch == 200
        setattr(packer, name, 100)
        assert packer.max_tokens == packer.max_tokens_per_batch == 100
        with pytest.raises(ValueError, match="99 tokens cannot hold"):
            setattr(packer, name, 99)
        assert packer.max_tokens == 100

    def test_a_budget_below_the_longest_item_is_refused(self):
        assert GreedyPacker(1024).max_tokens == 1024
        with pytest.raises(ValueError, match="1023 tokens cannot hold"):
            GreedyPacker(1023)

    def test_lengths_alone_give_the_batches_of_the_sequences(self):
        sequences = random_sequences(200, longest=60)
        packer = GreedyPacker(128, 50)
        by_length = packer.pack_lengths(
            np.array([len(item["sequence"]) for item in sequences]),
            [item["id"] for item in sequences],
        )
        assert [[sequences[i]["id"] for i in batch] for batch in by_length] == [
            [item["id"] for item in batch] for batch in packer.pack_sequences(sequences)
        ]


class TestTokenBudget:
    @pytest.fixture
    def gpu(self, monkeypatch):
        def install(total_gb):
            monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
            properties = SimpleNamespace(total_memory=int(total_gb * GB))
            monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)

        return install

    def test_without_cuda_it_is_4096_with_a_warning(self, monkeypatch, caplog):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        assert calculate_token_budget() == 4096
        assert "CUDA not available" in caplog.text
        assert caplog.records[0].levelname == "WARNING"

    def test_what_was_found_is_logged(self, gpu, caplog):
        gpu(16)
        with caplog.at_level(logging.INFO):
            calculate_token_budget()
        assert "Token budget" in caplog.text
        assert "16.0GB total" in caplog.text

    @pytest.mark.parametrize(
        ("total_gb", "options", "budget"),
        [
            (16, {}, 16384),
            (16, {"bytes_per_token": GB // 1000}, 9000),
            (16, {"bytes_per_token": GB // 1000, "model_memory_gb": 10.0}, 4000),
            (16, {"bytes_per_token": GB // 1000, "safety_margin_gb": 3.0}, 8000),
            (16, {"bytes_per_token": GB // 1000, "max_tokens": 5000}, 5000),
            (4, {"bytes_per_token": GB // 10_000}, 5000),  # the floor of 0.5 GB
            (4, {"bytes_per_token": GB}, 1024),
            (4, {"bytes_per_token": GB, "min_tokens": 2048}, 2048),
        ],
    )
    def test_memory_left_over_bytes_per_token_clamped(self, gpu, total_gb, options, budget):
        gpu(total_gb)
        assert calculate_token_budget(**options) == budget

    def test_options_that_make_no_sense_are_refused(self):
        with pytest.raises(ValueError, match="bytes_per_token"):
            calculate_token_budget(bytes_per_token=0)
        with pytest.raises(ValueError, match="min_tokens 9"):
            calculate_token_budget(min_tokens=9, max_tokens=8)
