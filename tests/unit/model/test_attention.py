"""Padded calls for sequences of like length, on a CPU: bits, numbers and padding."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from virnucpro.model.attention import (
    PackedSequences,
    PaddedAttention,
    SequenceAttention,
    padded_lengths,
)
from virnucpro.model.rotary import RotaryTables, inverse_frequencies

HEADS, DIM, LONGEST = 4, 16, 640
TABLES = RotaryTables(inverse_frequencies(DIM)).tables(LONGEST)
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def attend(attention, sequences):
    """Attend within sequences [n, 3, H, D] each, packed as they come; returns [n, H * D] each."""
    lengths = [len(sequence) for sequence in sequences]
    bounds = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)
    positions = torch.cat([torch.arange(n) for n in lengths])
    segments = attention.prepare(PackedSequences(positions, bounds, max(lengths), TABLES, HEADS))
    return attention(torch.cat(sequences), segments).split(lengths)


def projected(length, seed, dtype):
    generator = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(length, 3, HEADS, DIM, generator=generator)).to(dtype)


LENGTHS = st.lists(
    st.one_of(st.integers(1, 40), st.integers(55, 75), st.integers(1, LONGEST)),
    min_size=1,
    max_size=12,
)


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=25)
@given(lengths=LENGTHS, data=st.data())
def test_bits_alone_are_the_bits_in_any_company(dtype, lengths, data):
    attention = PaddedAttention()
    sequences = [projected(n, seed, dtype) for seed, n in enumerate(lengths)]
    together = attend(attention, sequences)
    order = data.draw(st.permutations(range(len(lengths))))
    some = order[: data.draw(st.integers(1, len(lengths)))]
    again = attend(attention, [sequences[i] for i in some])
    for place, i in enumerate(some):
        assert torch.equal(together[i], again[place])
    assert torch.equal(together[0], attend(attention, sequences[:1])[0])


@pytest.mark.parametrize("dtype", DTYPES)
def test_many_of_one_length_have_the_bits_of_one(dtype):
    attention = PaddedAttention()
    for length in (3, 64, 65, 200, 512, 600):
        one = projected(length, length, dtype)
        others = [projected(length - i % 2, i, dtype) for i in range(17)]
        alone = attend(attention, [one])[0]
        assert torch.equal(alone, attend(attention, [*others, one])[-1])


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float32, 2e-6), (torch.float16, 2e-3), (torch.bfloat16, 2e-2)],
)
@settings(max_examples=10)
@given(lengths=LENGTHS)
def test_numbers_are_those_of_a_call_a_sequence(dtype, tolerance, lengths):
    sequences = [projected(n, seed, dtype) for seed, n in enumerate(lengths)]
    found = torch.cat(attend(PaddedAttention(), sequences)).float()
    expected = torch.cat(attend(SequenceAttention(), [x.float() for x in sequences]))
    assert (found - expected).norm() <= tolerance * expected.norm()


def test_a_value_that_is_not_finite_stays_in_its_sequence():
    sequences = [projected(n, n, torch.float32) for n in (9, 12, 14)]
    sound = attend(PaddedAttention(), sequences)
    sequences[1][:] = torch.nan
    spoilt = attend(PaddedAttention(), sequences)
    assert spoilt[1].isnan().all()
    assert torch.equal(torch.cat(spoilt[::2]), torch.cat(sound[::2]))


def test_empty_sequences_behind_the_others_change_nothing():
    sequence = projected(20, 0, torch.float32)
    bounds = torch.tensor([0, 20, 20, 20], dtype=torch.int32)
    segments = PaddedAttention().prepare(
        PackedSequences(torch.arange(20), bounds, 20, TABLES, HEADS)
    )
    assert torch.equal(
        PaddedAttention()(sequence, segments), attend(PaddedAttention(), [sequence])[0]
    )


@given(st.integers(0, 2000))
def test_a_length_is_padded_to_the_least_of_few_that_holds_it(length):
    power = 1 << max(length.bit_length() - 1, 0)
    step = max(8, power // 8)
    expected = next(n for n in range(0, 3000, step) if n >= length)
    assert padded_lengths(np.array([length]))[0] == expected
    assert expected - length < max(8, length / 8)


def test_a_twentieth_of_like_lengths_of_proteins_is_padding():
    lengths = np.random.default_rng(0).lognormal(5.1, 0.8, size=20_000).astype(int).clip(3, 1024)
    padded = padded_lengths(lengths)
    assert padded.sum() <= 1.05 * lengths.sum()
    assert len(np.unique(padded)) <= 50
