import numpy as np
import pytest
import torch

from tests.unit.embed.builders import collate, random_sequences, random_state
from virnucpro.embed.engine import Engine, _Launched
from virnucpro.embed.exact import ExactModel
from virnucpro.embed.readout import Readout, StepValues
from virnucpro.embed.step import StepShape
from virnucpro.model.loading import build_model

TOKENS, LONGEST = 1024, 256


def make_engine(model, **options):
    return Engine(model, StepShape.for_lengths(TOKENS, 64, LONGEST), Readout([1, 3]), **options)


def packed(sequences):
    """Sequences in batches of at most the shape's tokens, in the order given."""
    batches, used = [[]], 0
    for index, sequence in sequences:
        if used + len(sequence) > TOKENS:
            batches.append([])
            used = 0
        batches[-1].append((index, sequence))
        used += len(sequence)
    return batches


def embed_all(engine, sequences):
    rows = {}
    for batch in packed(sequences):
        pooled = engine.embed(collate([s for _, s in batch])).pooled
        rows |= {index: pooled[i] for i, (index, _) in enumerate(batch)}
    return rows


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("attention", ["sdpa", "padded"])
def test_a_sequence_has_the_same_bits_whatever_is_packed_with_it(config, dtype, attention):
    model = build_model(config, random_state(config), dtype=dtype, attention=attention)
    engine = make_engine(model)
    sequences = list(enumerate(random_sequences(60)))
    shuffled = [sequences[i] for i in np.random.default_rng(1).permutation(60)]
    first, second = embed_all(engine, sequences), embed_all(engine, shuffled)
    alone = {i: engine.embed(collate([s])).pooled[0] for i, s in sequences[:10]}
    assert all(np.array_equal(first[i], second[i]) for i in first)
    assert all(np.array_equal(first[i], alone[i]) for i in alone)


def test_pooled_rows_are_the_means_of_the_layers_asked_for(model):
    sequence = random_sequences(1)[0]
    batch = collate([sequence])
    pooled = make_engine(model).embed(batch).pooled
    hidden = model(sequence, batch.positions, batch.cu_seqlens, LONGEST, [1, 3])
    expected = np.stack([hidden[layer][1:-1].mean(0).numpy() for layer in (1, 3)])
    np.testing.assert_allclose(pooled[0], expected, atol=1e-5)


class OutOfMemoryAbove:
    """A forward pass that runs out of memory when a step has more than `limit` tokens."""

    def __init__(self, engine, limit):
        self.forward, self.limit, self.sizes = engine.forward, limit, []

    def __call__(self, step, shape, model=None):
        self.sizes.append(shape.tokens)
        if shape.tokens > self.limit:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        return self.forward(step, shape, model)


@pytest.mark.fault(16)
def test_step_out_of_memory_is_split_and_loses_nothing(model, monkeypatch):
    engine = make_engine(model)
    sequences = random_sequences(8)
    whole = engine.embed(collate(sequences)).pooled
    forward = OutOfMemoryAbove(engine, 300)
    monkeypatch.setattr(engine, "forward", forward)
    result = engine.embed(collate(sequences))
    assert result.splits > 0
    assert result.failures == []
    np.testing.assert_allclose(result.pooled, whole, atol=1e-5)
    assert forward.sizes[:2] == [TOKENS, TOKENS // 2]


@pytest.mark.fault(17)
def test_one_sequence_out_of_memory_is_quarantined_with_the_reason(model, monkeypatch):
    engine = make_engine(model)
    monkeypatch.setattr(engine, "forward", OutOfMemoryAbove(engine, 0))
    result = engine.embed(collate(random_sequences(3)))
    assert [f.reason for f in result.failures] == ["out_of_memory"] * 3
    assert sorted(f.index for f in result.failures) == [0, 1, 2]
    assert np.isnan(result.pooled).all()


@pytest.mark.fault(18)
def test_other_device_errors_end_the_run(model, monkeypatch):
    engine = make_engine(model)

    def broken(*_arguments):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(engine, "forward", broken)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        engine.embed(collate(random_sequences(3)))


def overflowing_state(config):
    """Weights whose activations pass float16's range but not float32's."""
    state = random_state(config)
    state["layers.0.fc2.weight"] = state["layers.0.fc2.weight"] * 3e5
    return state


@pytest.mark.fault(20)
def test_row_that_overflows_is_computed_again_in_float32(config):
    state = overflowing_state(config)
    half = build_model(config, state, dtype=torch.float16)
    exact = build_model(config, state)
    calls = []

    def load(_device):
        calls.append(1)
        return exact

    sequences = random_sequences(4)
    shape = StepShape.for_lengths(TOKENS, 64, LONGEST)
    result = Engine(half, shape, Readout([1]), ExactModel(load, torch.device("cpu"))).embed(
        collate(sequences)
    )
    assert result.recomputed == 4
    assert result.failures == []
    assert len(calls) == 1
    reference = Engine(exact, StepShape.for_lengths(TOKENS, 64, LONGEST), Readout([1]))
    np.testing.assert_allclose(
        result.pooled, reference.embed(collate(sequences)).pooled, rtol=1e-4, atol=1e-2
    )


@pytest.mark.fault(53)
def test_without_memory_for_float32_such_rows_are_quarantined_and_no_others(config):
    def load(_device):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    half = build_model(config, overflowing_state(config), dtype=torch.float16)
    shape = StepShape.for_lengths(TOKENS, 64, LONGEST)
    engine = Engine(half, shape, Readout([1]), ExactModel(load, torch.device("cpu")))
    result = engine.embed(collate(random_sequences(4)))
    assert [(f.index, f.reason) for f in result.failures] == [(i, "not_finite") for i in range(4)]
    assert "no memory for float32" in result.failures[0].detail


@pytest.mark.fault(16)
def test_after_a_step_that_did_not_fit_none_is_tried_at_that_size_again(config, monkeypatch):
    model = build_model(config, random_state(config))
    batches = [collate(random_sequences(6)) for _ in range(4)]
    expected = [result.pooled for _, result in make_engine(model).stream(batches)]
    launched = []
    forward = Engine.forward

    def small_device(self, step, shape, *rest):
        launched.append(shape.tokens)
        if shape.tokens > TOKENS // 2:
            raise torch.cuda.OutOfMemoryError("out of memory")
        return forward(self, step, shape, *rest)

    monkeypatch.setattr(Engine, "forward", small_device)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    results = [result for _, result in make_engine(model).stream(batches)]
    assert launched.count(TOKENS) == 1
    assert all(result.splits for result in results)
    for result, pooled in zip(results, expected, strict=True):
        np.testing.assert_allclose(result.pooled, pooled, atol=1e-5)


@pytest.mark.fault(20)
def test_row_that_is_not_finite_in_float32_is_quarantined_alone(config):
    state = random_state(config)
    state["embed_tokens.weight"][10] = torch.nan
    model = build_model(config, state)
    sequences = random_sequences(6)
    for i, sequence in enumerate(sequences):
        sequence[sequence == 10] = 11
        if i == 2:
            sequence[1] = 10
    result = make_engine(model).embed(collate(sequences))
    assert [(f.index, f.reason) for f in result.failures] == [(2, "not_finite")]
    assert np.isnan(result.pooled[2]).all()
    assert np.isfinite(np.delete(result.pooled, 2, axis=0)).all()


def test_on_a_cpu_a_result_is_given_before_the_next_step_is_taken(model):
    taken = []

    def batches():
        for sequence in random_sequences(3):
            taken.append(sequence)
            yield collate([sequence])

    given = [len(taken) for _ in make_engine(model).stream(batches())]
    assert given == [1, 2, 3]


def test_values_of_devices_that_are_neither_cpu_nor_cuda_are_copied_too():
    """Those of Apple and Intel; the device that has no values stands for them."""
    values = StepValues(torch.empty(2, 1, 3, device="meta"), None, None)
    with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):
        _Launched(values)
    here = torch.zeros(2, 1, 3)
    assert _Launched(StepValues(here, None, None)).result().pooled is here
