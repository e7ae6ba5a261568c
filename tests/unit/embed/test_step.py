import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.embed.builders import collate, random_sequences
from virnucpro.embed.step import Step, StepShape


@given(st.integers(1, 12), st.integers(0, 1000))
def test_every_step_has_the_shape_of_the_run(count, seed):
    batch = collate(random_sequences(count, seed, longest=60))
    shape = StepShape.for_lengths(1024, 12, 64)
    step = Step.from_batch(batch, shape)
    used = len(batch.tokens)
    assert step.tokens.shape == step.positions.shape == (1024,)
    assert step.cu_seqlens.shape == (shape.max_sequences + 1,)
    assert step.sequences == count
    assert torch.equal(step.tokens[:used], batch.tokens)
    assert torch.equal(step.cu_seqlens[: count + 1], batch.cu_seqlens)
    lengths = step.cu_seqlens.diff()
    assert (lengths >= 0).all()
    assert lengths.max() <= 64
    assert step.cu_seqlens[-1] == 1024


def test_full_step_has_no_filler():
    batch = collate([torch.arange(64)])
    step = Step.from_batch(batch, StepShape.for_lengths(64, 1, 64))
    assert step.cu_seqlens.tolist() == [0, 64, 64]


def test_batch_over_the_shape_is_refused_not_cut():
    batch = collate(random_sequences(8, longest=60))
    with pytest.raises(ValueError, match="does not fit"):
        Step.from_batch(batch, StepShape.for_lengths(len(batch.tokens) - 1, 8, 64))
    with pytest.raises(ValueError, match="does not fit"):
        Step.from_batch(batch, StepShape(1024, 3, 64))
