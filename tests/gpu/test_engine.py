"""The engine on a real CUDA device: parity, bits, memory. Run with ``pytest -m gpu``."""

import dataclasses

import numpy as np
import pytest
import torch
from esm.model.esm2 import ESM2

from tests.unit.embed.builders import collate
from virnucpro.data.packing import first_fit_decreasing
from virnucpro.embed.engine import Engine
from virnucpro.embed.readout import Readout
from virnucpro.embed.step import StepShape
from virnucpro.model.config import KNOWN_MODELS
from virnucpro.model.loading import build_model

pytestmark = pytest.mark.gpu

TOKENS, LONGEST = 8192, 1024
FLOAT8 = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 9),
    reason="float8 needs a device of compute capability 8.9",
)


@pytest.fixture(scope="module", params=["esm2_t6_8M_UR50D", "esm2_t12_35M_UR50D"])
def reference(request):
    """A fair-esm model in float32 with random weights, and its canonical weights."""
    torch.manual_seed(0)
    config = KNOWN_MODELS[request.param]
    model = ESM2(config.layers, config.dim, config.heads, "ESM-1b").eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
            elif "embed_tokens" in name:
                parameter.mul_(3)
    state = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if not name.startswith(("contact_head", "lm_head.weight")) and "inv_freq" not in name
    }
    return config, model.cuda(), state


@pytest.fixture(scope="module")
def sequences():
    random = np.random.default_rng(0)
    lengths = random.lognormal(5.45, 0.75, size=500).astype(int).clip(1, LONGEST - 2)
    lengths[:4] = [1, 2, LONGEST - 2, LONGEST - 3]
    return [
        torch.from_numpy(np.concatenate([[0], random.integers(4, 29, size=n), [2]]))
        for n in lengths
    ]


def embed_all(engine, sequences, order=None):
    """Embed all sequences, packed; `order` changes which share a step and how they stand."""
    order = np.arange(len(sequences)) if order is None else order
    tokens = np.array([len(sequences[i]) for i in order])
    items, bins = first_fit_decreasing(tokens, engine.shape.tokens)
    shape = (len(sequences), len(engine.readout.layers), engine.model.config.dim)
    rows = np.empty(shape, np.float32)
    for batch in np.split(order[items], np.flatnonzero(np.diff(bins)) + 1):
        rows[batch] = engine.embed(collate([sequences[i] for i in batch])).pooled
    return rows


def make_engine(reference, dtype, tokens=TOKENS, attention="auto", **readout):
    config, _, state = reference
    model = build_model(
        config, state, dtype=dtype, device="cuda", attention=attention, head=bool(readout)
    )
    shape = StepShape.for_lengths(tokens, tokens // 3, LONGEST)
    return Engine(model, shape, Readout([config.layers // 2, config.layers], **readout))


@pytest.mark.parametrize(
    ("dtype", "cosine"),
    [
        (torch.float32, 0.9999999),
        (torch.float16, 0.99999),
        (torch.bfloat16, 0.999),
        pytest.param(torch.float8_e4m3fn, 0.99, marks=FLOAT8),
    ],
)
def test_pooled_embeddings_agree_with_fair_esm(reference, sequences, dtype, cosine):
    config, model, _ = reference
    some = sequences[:60]
    pooled = embed_all(make_engine(reference, dtype), some)
    layers = [config.layers // 2, config.layers]
    for row, sequence in enumerate(some):
        with torch.no_grad():
            hidden = model(sequence[None].cuda(), repr_layers=layers)["representations"]
        expected = np.stack([hidden[i][0, 1:-1].mean(0).cpu().numpy() for i in layers])
        a, b = pooled[row].astype(np.float64), expected.astype(np.float64)
        norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        assert ((a * b).sum(1) / norms).min() >= cosine


@pytest.mark.fault(40)
@pytest.mark.parametrize(
    "dtype",
    [
        torch.float32,
        torch.float16,
        torch.bfloat16,
        pytest.param(torch.float8_e4m3fn, marks=FLOAT8),
    ],
)
def test_bits_do_not_depend_on_neighbours_or_order(reference, sequences, dtype):
    engine = make_engine(reference, dtype)
    first = embed_all(engine, sequences)
    shuffled = np.random.default_rng(1).permutation(len(sequences))
    assert np.array_equal(first, embed_all(engine, sequences, shuffled))
    some = np.arange(0, len(sequences), 3)
    again = embed_all(engine, [sequences[i] for i in some])
    assert np.array_equal(first[some], again)


@pytest.mark.fault(40)
@pytest.mark.parametrize("pooling", ["cls", "max", "none"])
def test_all_that_can_be_read_out_has_its_own_bits_and_agrees_with_plain_torch(
    reference, sequences, pooling
):
    wanted = {"pooling": pooling, "residues": torch.float32, "likelihood": True}
    engine = make_engine(reference, torch.float32, **wanted)
    plain = make_engine(reference, torch.float32, attention="sdpa", **wanted)
    some = sequences[:24]
    # As windows have it: every other sequence stands for all but its first and last residue.
    spans = np.array([(i % 2, len(s) - 2 - i % 2) for i, s in enumerate(some)])
    spans[spans[:, 0] >= spans[:, 1]] = (0, 1)
    order = np.random.default_rng(2).permutation(len(some))

    def run(engine, order):
        batch = collate([some[i] for i in order])
        return engine.embed(dataclasses.replace(batch, pooling_spans=spans[order]))

    first, other = run(engine, np.arange(len(some))), run(engine, order)
    assert np.array_equal(first.pooled[order], other.pooled)
    assert np.array_equal(first.likelihood[order], other.likelihood)
    found = zip(order, other.residues, strict=True)
    assert all(np.array_equal(first.residues[i], residues) for i, residues in found)
    expected = run(plain, np.arange(len(some)))
    np.testing.assert_allclose(first.pooled, expected.pooled, atol=2e-3)
    np.testing.assert_allclose(first.likelihood, expected.likelihood, atol=2e-3)
    for i, (ours, theirs) in enumerate(zip(first.residues, expected.residues, strict=True)):
        assert ours.shape == (spans[i, 1] - spans[i, 0], 2, engine.model.config.dim)
        np.testing.assert_allclose(ours, theirs, atol=2e-3)
        if pooling == "max":
            np.testing.assert_array_equal(first.pooled[i], ours.max(axis=0))
        elif pooling == "none":
            np.testing.assert_allclose(first.pooled[i], ours.mean(axis=0), atol=1e-4)


@pytest.mark.fault(16)
def test_a_step_that_does_not_fit_is_split_and_repeated(reference, sequences):
    order, bins = first_fit_decreasing(np.array([len(s) for s in sequences]), 65536)
    batch = collate([sequences[i] for i in order[bins == 0]])
    engine = make_engine(reference, torch.float16, tokens=65536)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    whole = engine.embed(batch)
    peak = torch.cuda.max_memory_allocated() - before
    del engine
    torch.cuda.empty_cache()

    tight = make_engine(reference, torch.float16, tokens=65536)
    limit = torch.cuda.memory_reserved() + 0.7 * peak
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(limit / total)
    try:
        result = tight.embed(batch)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert whole.splits == 0
    assert result.splits >= 1
    assert result.failures == []
    assert np.abs(result.pooled - whole.pooled).max() < 0.05


def test_steps_in_flight_do_not_mix(reference, sequences):
    engine = make_engine(reference, torch.float16)
    order, bins = first_fit_decreasing(np.array([len(s) for s in sequences]), TOKENS)
    groups = np.split(order, np.flatnonzero(np.diff(bins)) + 1)
    batches = [collate([sequences[i] for i in group]) for group in groups]
    streamed = [result.pooled for _, result in engine.stream(batches)]
    alone = [engine.embed(batch).pooled for batch in batches]
    assert len(streamed) == len(batches)
    assert all(np.array_equal(a, b) for a, b in zip(streamed, alone, strict=True))


@pytest.mark.parametrize(
    ("dtype", "cosine"),
    [(torch.float32, 0.9999999), (torch.float16, 0.99999), (torch.bfloat16, 0.999)],
)
def test_padded_calls_where_no_packed_kernel_runs_keep_bits_and_numbers(
    reference, sequences, dtype, cosine
):
    engine = make_engine(reference, dtype, attention="padded")
    assert not engine.model.backend.on_device
    first = embed_all(engine, sequences)
    shuffled = np.random.default_rng(1).permutation(len(sequences))
    assert np.array_equal(first, embed_all(engine, sequences, shuffled))
    some = np.arange(0, len(sequences), 7)
    assert np.array_equal(first[some], embed_all(engine, [sequences[i] for i in some]))
    exact = embed_all(make_engine(reference, torch.float32, attention="sdpa"), sequences)
    norms = np.linalg.norm(first, axis=-1) * np.linalg.norm(exact, axis=-1)
    assert ((first * exact).sum(-1) / norms).min() > cosine - 1e-6


@pytest.mark.parametrize("backend", ["sdpa", "varlen"])
def test_other_backends_agree_with_the_kernels(reference, sequences, backend):
    config, _, state = reference
    some = sequences[:40]
    model = build_model(config, state, dtype=torch.float16, device="cuda", attention=backend)
    shape = StepShape.for_lengths(TOKENS, TOKENS // 3, LONGEST)
    other = Engine(model, shape, Readout([config.layers // 2, config.layers]))
    ours = embed_all(make_engine(reference, torch.float16), some)
    theirs = embed_all(other, some)
    norms = np.linalg.norm(ours, axis=-1) * np.linalg.norm(theirs, axis=-1)
    assert ((ours * theirs).sum(-1) / norms).min() > 0.99999
