"""What is read out of the model, whole shards against fair-esm and against windows by hand."""

import dataclasses
import functools
import itertools

import numpy as np
import pytest
import torch
from esm.model.esm2 import ESM2

from tests.unit.embed.builders import (
    collate,
    make_demo,
    make_shard,
    random_proteins,
    random_sequences,
    random_state,
)
from virnucpro.embed import shard as shard_module
from virnucpro.embed.engine import Engine, Failure
from virnucpro.embed.exact import ExactModel
from virnucpro.embed.job import EmbedOptions
from virnucpro.embed.readout import Readout
from virnucpro.embed.shard import embed_shard
from virnucpro.embed.step import StepShape
from virnucpro.errors import DataError, InputError
from virnucpro.files import read_json, sha256_of, write_json
from virnucpro.model.loading import build_model
from virnucpro.model.weights import load_weights
from virnucpro.plan.plan import read_plan
from virnucpro.sequences.shards import read_shard

WINDOW, OVERLAP = 60, 16
LETTERS = "LAGVSERTIDPKQNFYMHWCXBUZO"
CPU = EmbedOptions(device="cpu")


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    return make_demo(tmp_path_factory.mktemp("demo"), WINDOW)


@pytest.fixture(scope="module")
def fair_esm(demo):
    """The demo model in fair-esm's own network; gives layers and logits of one sequence."""
    config, state = load_weights(demo / "demo.safetensors", demo / "demo.json")
    theirs = ESM2(config.layers, config.dim, config.heads).eval()
    tied = {"lm_head.weight": state["embed_tokens.weight"]}
    left = theirs.load_state_dict(state | tied, strict=False)
    assert all("contact_head" in name or "inv_freq" in name for name in left.missing_keys)

    @functools.cache
    def run(residues):
        tokens = torch.tensor([[0, *(LETTERS.index(letter) + 4 for letter in residues), 2]])
        with torch.inference_mode():
            found = theirs(tokens, repr_layers=[3, 6])
        likelihood = found["logits"][0].log_softmax(-1).gather(1, tokens[0, :, None])[:, 0]
        layers = [found["representations"][layer][0].numpy() for layer in (3, 6)]
        return np.stack(layers, axis=1), likelihood.numpy()  # [tokens, layers, dim], [tokens]

    return run


def make_files(folder, demo, sequences, long_sequences="window"):
    options = {"long_sequences": long_sequences, "window_overlap": OVERLAP}
    return make_shard(folder, demo, sequences, WINDOW, **options)


PROTEINS = [*random_proteins(30, longest=WINDOW), *random_proteins(12, longest=260, seed=3)]


@pytest.fixture
def files(tmp_path, demo):
    return make_files(tmp_path, demo, PROTEINS)


def by_hand(fair_esm, residues):
    """Windows one by one in fair-esm: [(first, end, layers of all tokens, likelihoods)]."""
    length, count = len(residues), 1
    while count * WINDOW - (count - 1) * OVERLAP < length:
        count += 1
    starts = [i * (length - WINDOW) // (count - 1) for i in range(count)] if count > 1 else [0]
    windows = [(start, min(start + WINDOW, length)) for start in starts]
    chosen = [
        max(range(count), key=lambda i: edge_distance(windows[i], residue, length))
        for residue in range(length)
    ]
    return windows, chosen, [fair_esm(residues[start:end]) for start, end in windows]


def edge_distance(window, residue, length):
    start, end = window
    if not start <= residue < end:
        return -1
    left = residue - start if start else length
    return min(left, end - 1 - residue if end < length else length)


def residues_by_hand(fair_esm, residues):
    """Representations [residues, layers, dim] and likelihoods [residues], each from its window."""
    windows, chosen, found = by_hand(fair_esm, residues)
    at = [(found[i], residue - windows[i][0] + 1) for residue, i in enumerate(chosen)]
    layers = np.stack([layers[token] for (layers, _), token in at])
    return layers, np.array([likelihood[token] for (_, likelihood), token in at])


@pytest.mark.parametrize("pooling", ["mean", "max", "cls", "none"])
def test_whole_shards_in_windows_are_fair_esm_s_windows_put_together(files, fair_esm, pooling):
    options = dataclasses.replace(
        CPU, pooling=pooling, layers=(3, -1), pseudo_perplexity="one-pass"
    )
    receipt = embed_shard(files, options)
    pooled, scores = np.load(files.embeddings), np.load(files.extras["pseudo_perplexity"])
    shard, plan = read_shard(files.shard), read_plan(files.plan)
    assert (np.bincount(plan.row) > 2).any()
    if pooling == "none":
        kept = np.load(files.extras["residues"])
        assert kept.shape == (sum(map(len, shard.residues)), 2, 320)
    for row, residues in enumerate(bytes(r).decode() for r in shard.residues):
        layers, likelihood = residues_by_hand(fair_esm, residues)
        expected = layers.max(0) if pooling == "max" else layers.astype(np.float64).mean(0)
        if pooling == "cls":
            windows, chosen, found = by_hand(fair_esm, residues)
            shares = np.bincount(chosen, minlength=len(windows)) / len(residues)
            expected = sum(share * one[0][0] for share, one in zip(shares, found, strict=True))
        np.testing.assert_allclose(pooled[row], expected, atol=2e-5)
        np.testing.assert_allclose(scores[row], np.exp(-likelihood.mean()), rtol=2e-4)
        if pooling == "none":
            first, end = plan.residue_offsets[row : row + 2]
            np.testing.assert_allclose(kept[first:end], layers, atol=2e-5)
    assert receipt.quarantined == []
    assert receipt.extras == {
        name: sha256_of(path) for name, path in files.extras.items() if path.exists()
    }


def test_a_protein_within_the_limit_has_the_same_bits_under_both_policies(tmp_path, demo):
    windows = make_files(tmp_path / "w", demo, PROTEINS)
    cut = make_files(tmp_path / "t", demo, PROTEINS, "truncate")
    for files in (windows, cut):
        embed_shard(files, CPU)
    first, second = np.load(windows.embeddings), np.load(cut.embeddings)
    short = np.array([len(residues) <= WINDOW for residues in read_shard(cut.shard).residues])
    assert 0 < short.sum() < len(short)
    assert np.array_equal(first[short], second[short])
    assert not (first[~short] == second[~short]).all(axis=(1, 2)).any()


def test_asking_for_more_does_not_change_the_vectors(files, tmp_path, demo):
    embed_shard(files, CPU)
    more = make_files(tmp_path / "more", demo, PROTEINS)
    embed_shard(more, dataclasses.replace(CPU, pooling="none", pseudo_perplexity="one-pass"))
    assert files.embeddings.read_bytes() == more.embeddings.read_bytes()


def test_residues_that_were_cut_off_are_not_there(tmp_path, demo):
    files = make_files(tmp_path, demo, PROTEINS, "truncate")
    embed_shard(files, dataclasses.replace(CPU, pooling="none", output_dtype="float16"))
    kept, plan = np.load(files.extras["residues"]), read_plan(files.plan)
    lengths = [min(len(residues), WINDOW) for residues in read_shard(files.shard).residues]
    assert kept.dtype == np.float16
    assert kept.shape == (sum(lengths), 1, 320)
    means = [
        kept[a:b].astype(np.float32).mean(0)
        for a, b in zip(plan.residue_offsets[:-1], plan.residue_offsets[1:], strict=True)
    ]
    np.testing.assert_allclose(np.load(files.embeddings), means, atol=2e-3)


def test_a_finished_shard_with_all_its_arrays_is_not_computed_again(files, monkeypatch):
    options = dataclasses.replace(CPU, pooling="none", pseudo_perplexity="one-pass")
    receipt = embed_shard(files, options)
    with monkeypatch.context() as patch:
        patch.delattr(shard_module, "Engine")
        assert embed_shard(files, options) == receipt
    for path in files.extras.values():
        whole = path.read_bytes()
        for damage in (whole[:-1], None):
            path.unlink() if damage is None else path.write_bytes(damage)
            assert embed_shard(files, options) == receipt
            assert path.read_bytes() == whole


def test_arrays_of_an_earlier_request_do_not_stay(files):
    embed_shard(files, dataclasses.replace(CPU, pooling="none", pseudo_perplexity="one-pass"))
    receipt = embed_shard(files, CPU)
    assert receipt.extras == {}
    assert not any(path.exists() for path in files.extras.values())


def test_a_window_that_fails_quarantines_its_sequence_once(files, monkeypatch):
    plan = read_plan(files.plan)
    row = int(plan.row[plan.windows > 2][0])
    windows = np.flatnonzero(plan.row == row)
    key = plan.keys[windows[0]].tobytes().hex()
    embed_shard(files, CPU)
    whole = np.load(files.embeddings)
    stream = Engine.stream

    def failing(engine, batches):
        item = itertools.count()
        for batch, result in stream(engine, batches):
            for index in range(batch.sequences):
                if next(item) in windows:
                    result.pooled[index] = np.nan
                    result.failures.append(Failure(index, "not_finite", "as a test"))
            yield batch, result

    monkeypatch.setattr(Engine, "stream", failing)
    files.receipt.unlink()
    (entry,) = embed_shard(files, CPU).quarantined
    assert (entry.row, entry.key, entry.reason) == (row, key, "not_finite")
    assert entry.detail.startswith("residues ")
    found = np.load(files.embeddings)
    assert np.isnan(found[row]).all()
    others = np.arange(len(whole)) != row
    assert np.array_equal(found[others], whole[others])


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"pooling": "sum"}, "unknown pooling 'sum'"), ({"pseudo_perplexity": "mask"}, "'mask'")],
)
def test_unknown_wishes_are_refused(files, changes, message):
    with pytest.raises(InputError, match=message):
        embed_shard(files, dataclasses.replace(CPU, **changes))
    assert not files.embeddings.exists()


def test_weights_without_a_head_are_refused_before_anything_is_loaded(files, tmp_path):
    receipt = read_json(files.model_receipt)
    receipt["has_lm_head"] = False
    write_json(tmp_path / "headless.json", receipt, sealed=True)
    headless = dataclasses.replace(files, model_receipt=tmp_path / "headless.json")
    with pytest.raises(InputError, match="no language-model head"):
        embed_shard(headless, dataclasses.replace(CPU, pseudo_perplexity="one-pass"))


def test_a_disk_without_room_for_the_residues_is_found_before_the_model_is_loaded(
    files, monkeypatch
):
    def full(path, size):
        if "residues" in path.name:
            raise DataError("no space", path=path)

    monkeypatch.setattr("virnucpro.embed.output.reserve", full)
    monkeypatch.setattr(shard_module, "load_model", lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises(DataError, match="no space"):
        embed_shard(files, dataclasses.replace(CPU, pooling="none"))
    assert list(files.receipt.parent.iterdir()) == []


class TestEngine:
    """Residues and likelihoods go the ways of the pooled rows, also where a step fails."""

    SHAPE = StepShape.for_lengths(1024, 64, 256)

    def engine(self, config, state, dtype=torch.float32, exact=None):
        model = build_model(config, state, dtype=dtype, head=True)
        return Engine(model, self.SHAPE, Readout([1, 3], "mean", torch.float32, True), exact)

    @pytest.fixture
    def state(self, config):
        return random_state(config)

    def batch(self, count):
        """A batch of which some items, as windows do, stand for a part of their residues."""
        sequences = [s for s in random_sequences(2 * count) if len(s) > 8][:count]
        spans = np.array([(i % 3, len(s) - 2 - 2 * (i % 2)) for i, s in enumerate(sequences)])
        return dataclasses.replace(collate(sequences), pooling_spans=spans)

    def same(self, one, other, **tolerance):
        np.testing.assert_allclose(one.pooled, other.pooled, **tolerance)
        np.testing.assert_allclose(one.likelihood, other.likelihood, **tolerance)
        for first, second in zip(one.residues, other.residues, strict=True):
            np.testing.assert_allclose(first, second, **tolerance)

    @pytest.mark.fault(16)
    def test_a_step_out_of_memory(self, config, state, monkeypatch):
        engine, batch = self.engine(config, state), self.batch(8)
        whole, forward = engine.embed(batch), engine.forward

        def small(step, shape, model=None):
            if shape.tokens > 300:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate")
            return forward(step, shape, model)

        monkeypatch.setattr(engine, "forward", small)
        result = engine.embed(batch)
        assert result.splits > 0
        self.same(result, whole, atol=1e-5)
        assert [len(found) for found in result.residues] == np.diff(batch.pooling_spans)[
            :, 0
        ].tolist()

    @pytest.mark.fault(20)
    def test_a_row_that_is_not_finite(self, config, state):
        state["layers.0.fc2.weight"] = state["layers.0.fc2.weight"] * 3e5
        exact = self.engine(config, state)
        fallback = ExactModel(lambda _: exact.model, torch.device("cpu"))
        half = self.engine(config, state, torch.float16, fallback)
        batch = self.batch(4)
        result = half.embed(batch)
        assert result.recomputed == 4
        self.same(result, exact.embed(batch), rtol=1e-4, atol=1e-2)

    @pytest.mark.fault(20)
    def test_a_row_that_stays_so(self, config, state):
        state["embed_tokens.weight"][10] = torch.nan
        sequences = random_sequences(3)
        for sequence in sequences:
            sequence[sequence == 10] = 11
        sequences[1][1] = 10
        result = self.engine(config, state).embed(collate(sequences))
        # The vocabulary is the denominator of every likelihood: with a token lost, all are.
        assert {failure.reason for failure in result.failures} == {"not_finite"}
        assert [found is None for found in result.residues] == [True] * 3
        assert np.isnan(result.likelihood).all()
