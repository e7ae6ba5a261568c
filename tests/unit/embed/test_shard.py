import dataclasses
import json
import os

import numpy as np
import pytest
import torch

from tests.unit.embed.builders import make_demo, make_shard, random_proteins, random_state
from virnucpro.embed import device_lock
from virnucpro.embed import job as job_module
from virnucpro.embed import shard as shard_module
from virnucpro.embed.device_lock import Claim
from virnucpro.embed.job import EmbedOptions
from virnucpro.embed.receipt import read_receipt
from virnucpro.embed.shard import embed_shard
from virnucpro.errors import DataError, InputError
from virnucpro.files import read_json, sha256_of
from virnucpro.model.config import ModelConfig
from virnucpro.model.loading import build_model
from virnucpro.model.visible import Device
from virnucpro.model.weights import load_weights
from virnucpro.sequences.shards import read_shard

LONGEST = 120
CPU = EmbedOptions(device="cpu")


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    return make_demo(tmp_path_factory.mktemp("demo"), LONGEST)


def make_files(folder, demo, sequences, token_budget=512):
    return make_shard(folder, demo, sequences, LONGEST, token_budget)


@pytest.fixture
def files(tmp_path, demo):
    return make_files(tmp_path, demo, random_proteins(40))


def alone(files, residues, layer=-1):
    config, state = load_weights(files.weights, files.model_receipt)
    model = build_model(config, state)
    tokens = torch.tensor([0, *("LAGVSERTIDPKQNFYMHWCXBUZO".index(c) + 4 for c in residues), 2])
    bounds = torch.tensor([0, len(tokens)], dtype=torch.int32)
    hidden = model(tokens, torch.arange(len(tokens)), bounds, len(tokens), [layer])
    return next(iter(hidden.values()))[1:-1].mean(0).numpy()


def test_each_row_is_the_embedding_of_its_sequence(files):
    receipt = embed_shard(files, CPU)
    array = np.load(files.embeddings, allow_pickle=False)
    sequences = read_shard(files.shard)
    assert array.shape == (40, 1, 320) == tuple(receipt.shape)
    for row, residues in enumerate(sequences.residues):
        expected = alone(files, residues.decode()[:LONGEST])
        np.testing.assert_allclose(array[row, 0], expected, atol=1e-5)


def test_receipt_says_what_was_computed_and_the_bytes_agree(files):
    receipt = embed_shard(files, CPU)
    assert receipt == read_receipt(files.receipt)
    assert receipt.array_sha256 == sha256_of(files.embeddings)
    assert receipt.demo is True
    assert receipt.layers == [6]
    assert receipt.tokens_per_step == 512
    assert receipt.quarantined == []
    lines = files.step_log.read_text().splitlines()
    assert len(lines) == receipt.steps + 1
    assert sum(int(line.split("\t")[1]) for line in lines[1:]) == 40
    assert sorted(os.listdir(files.receipt.parent)) == [
        "00000.json",
        "00000.npy",
        "00000.steps.tsv",
    ]


def test_the_step_log_names_the_gpu_that_was_claimed_in_its_first_line_only(files, monkeypatch):
    claim = Claim(Device("GPU-1234", "NVIDIA H100"), 2.5, -1)
    monkeypatch.setattr(device_lock, "_claim", claim)
    receipt = embed_shard(files, CPU)
    notes = [line.split("\t")[-2] for line in files.step_log.read_text().splitlines()[1:]]
    assert notes == ["GPU GPU-1234 (NVIDIA H100), waited 2.5 s", *[""] * (receipt.steps - 1)]
    assert "GPU" not in files.receipt.read_text()


def test_the_same_shard_gives_the_same_bytes(files, tmp_path, demo):
    embed_shard(files, CPU)
    again = dataclasses.replace(
        files,
        embeddings=tmp_path / "b.npy",
        receipt=tmp_path / "b.json",
        step_log=tmp_path / "b.tsv",
    )
    embed_shard(again, CPU)
    assert again.embeddings.read_bytes() == files.embeddings.read_bytes()
    assert again.receipt.read_bytes() == files.receipt.read_bytes()


@pytest.mark.fault(40)
def test_a_sequence_has_the_same_bits_in_another_shard(files, tmp_path, demo):
    embed_shard(files, CPU)
    other = tmp_path / "other"
    other.mkdir()
    some = read_shard(files.shard).residues[::3]
    few = make_files(other, demo, [*some, *random_proteins(9, seed=5)])
    embed_shard(few, CPU)
    first = dict(zip(read_shard(files.shard).keys, np.load(files.embeddings), strict=True))
    second = dict(zip(read_shard(few.shard).keys, np.load(few.embeddings), strict=True))
    shared = first.keys() & second.keys()
    assert len(shared) >= len(some)
    assert all(np.array_equal(first[key], second[key]) for key in shared)


def test_a_finished_shard_is_not_computed_again(files, monkeypatch):
    first = embed_shard(files, CPU)
    monkeypatch.setattr(shard_module, "load_model", None)
    assert embed_shard(files, CPU) == first


@pytest.mark.fault(7, 9)
@pytest.mark.parametrize("damage", ["bit", "receipt", "other_request"])
def test_a_damaged_or_different_result_is_computed_again(files, damage, caplog):
    first = embed_shard(files, CPU)
    options = CPU
    if damage == "bit":
        content = bytearray(files.embeddings.read_bytes())
        content[-5] ^= 1
        files.embeddings.write_bytes(content)
    elif damage == "receipt":
        files.receipt.write_text("{")
    else:
        options = dataclasses.replace(CPU, output_dtype="float16")
    second = embed_shard(files, options)
    assert second.array_sha256 == sha256_of(files.embeddings)
    assert (second == first) == (damage != "other_request")


def test_several_layers_are_kept_in_the_order_asked_for(files):
    receipt = embed_shard(files, dataclasses.replace(CPU, layers=(3, -1)))
    array = np.load(files.embeddings)
    assert receipt.layers == [3, 6]
    assert array.shape == (40, 2, 320)
    residues = read_shard(files.shard).residues[7].decode()[:LONGEST]
    np.testing.assert_allclose(array[7, 0], alone(files, residues, 3), atol=1e-5)
    np.testing.assert_allclose(array[7, 1], alone(files, residues, 6), atol=1e-5)


@pytest.mark.fault(37)
def test_weights_that_are_not_those_of_the_receipt_are_refused(files, tmp_path):
    content = bytearray(files.weights.read_bytes())
    content[-100] ^= 1
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(content)
    with pytest.raises(DataError, match=r"damaged\.safetensors.*has sha256"):
        embed_shard(dataclasses.replace(files, weights=damaged), CPU)
    assert os.listdir(files.embeddings.parent) == []


def test_layer_that_does_not_exist_is_refused(files):
    with pytest.raises(InputError, match=r"layer 7.*layers 0 \(the embedded residues\) to 6"):
        embed_shard(files, dataclasses.replace(CPU, layers=(7,)))
    assert not files.embeddings.exists()


def test_token_budget_below_the_plan_packs_again_and_drops_nothing(files):
    whole = embed_shard(files, CPU)
    rows = np.load(files.embeddings)
    files.receipt.unlink()
    smaller = embed_shard(files, dataclasses.replace(CPU, token_budget=200))
    assert (whole.tokens_per_step, smaller.tokens_per_step) == (512, 200)
    assert smaller.steps > whole.steps
    np.testing.assert_allclose(np.load(files.embeddings), rows, atol=1e-5)


@pytest.mark.fault(32)
def test_step_smaller_than_a_sequence_is_refused(files):
    with pytest.raises(InputError, match="100 tokens cannot hold a sequence of 122"):
        embed_shard(files, dataclasses.replace(CPU, token_budget=100))


def test_larger_steps_run_planned_batches_side_by_side(tmp_path, demo):
    files = make_files(tmp_path, demo, random_proteins(60), token_budget=128)
    receipt = embed_shard(files, CPU)  # the budget was measured for 512
    assert receipt.tokens_per_step == 512
    lines = files.step_log.read_text().splitlines()[1:]
    assert max(int(line.split("\t")[2]) for line in lines) > 128
    assert sum(int(line.split("\t")[1]) for line in lines) == 60


def test_budget_of_another_device_is_measured_again(files, tmp_path, caplog):
    budget = read_json(files.budget)
    budget["device"] = "NVIDIA Imaginary"
    other = tmp_path / "budget.json"
    other.write_text(json.dumps(budget))
    embed_shard(dataclasses.replace(files, budget=other), CPU)
    assert "NVIDIA Imaginary" in caplog.text
    assert "measuring again" in caplog.text


@pytest.mark.fault(9)
def test_plan_of_another_shard_is_refused(files, tmp_path, demo):
    other = tmp_path / "other"
    other.mkdir()
    stranger = make_files(other, demo, random_proteins(40, seed=9))
    with pytest.raises(DataError, match="another shard"):
        embed_shard(dataclasses.replace(files, plan=stranger.plan), CPU)


@pytest.mark.fault(43)
def test_shard_without_sequences_gives_an_empty_array(tmp_path, demo):
    files = make_files(tmp_path, demo, [])
    receipt = embed_shard(files, CPU)
    assert np.load(files.embeddings).shape == (0, 1, 320)
    assert receipt.steps == 0


def test_float8_says_how_close_it_is_to_float32(files, monkeypatch):
    exact = embed_shard(files, CPU)
    vectors = np.load(files.embeddings)[:, 0]
    assert exact.agreement is None
    assert read_json(files.receipt)["agreement"] is None
    float8 = torch.float8_e4m3fn, "as on a GPU that has it"
    monkeypatch.setattr(job_module, "select_dtype", lambda *_: float8)
    receipt = embed_shard(files, dataclasses.replace(CPU, dtype="float8"))
    coarse = np.load(files.embeddings)[:, 0]
    agreement = receipt.agreement
    assert receipt == read_receipt(files.receipt)
    assert (receipt.compute_dtype, agreement.sequences) == ("float8", 32)
    norms = np.linalg.norm(vectors, axis=1) * np.linalg.norm(coarse, axis=1)
    cosines = (vectors * coarse).sum(axis=1) / norms
    assert 0.9 < cosines.min() <= agreement.pooled_cosine_min + 1e-6
    assert agreement.pooled_cosine_min <= agreement.pooled_cosine_median < 1
    assert agreement.neighbourhood.sequences == agreement.sequences


def test_residues_in_float8_are_refused_unless_they_are_accepted(files, monkeypatch):
    float8 = torch.float8_e4m3fn, "as on a GPU that has it"
    monkeypatch.setattr(job_module, "select_dtype", lambda *_: float8)
    asked = dataclasses.replace(CPU, dtype="float8", pooling="none")
    with pytest.raises(InputError, match="single residues lose") as refused:
        embed_shard(files, asked)
    assert "embed.accept_float8_residues: true" in str(refused.value)
    assert not files.receipt.exists()
    embed_shard(files, dataclasses.replace(asked, accept_float8_residues=True))
    assert files.extras["residues"].exists()


@pytest.mark.fault(21)
def test_value_outside_float16_is_quarantined_not_infinite(files, monkeypatch):
    config = ModelConfig("demo", 6, 320, 20)
    state = random_state(config)
    state["emb_layer_norm_after.weight"] = state["emb_layer_norm_after.weight"] * 1e7
    model = build_model(config, state)
    monkeypatch.setattr(shard_module, "load_model", lambda *_, **__: model)
    receipt = embed_shard(files, dataclasses.replace(CPU, output_dtype="float16"))
    array = np.load(files.embeddings)
    assert {entry.reason for entry in receipt.quarantined} == {"out_of_range"}
    rows = [entry.row for entry in receipt.quarantined]
    assert np.isnan(array[rows]).all()
    assert not np.isinf(array).any()
    keys = read_shard(files.shard).keys
    assert all(keys[entry.row] == entry.key for entry in receipt.quarantined)


@pytest.mark.fault(6)
def test_no_space_is_said_before_the_model_is_loaded(files, monkeypatch):
    def full(*_arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    monkeypatch.setattr(shard_module, "load_model", lambda *_, **__: pytest.fail("was loaded"))
    with pytest.raises(DataError, match="bytes are needed"):
        embed_shard(files, CPU)
    assert os.listdir(files.embeddings.parent) == []


@pytest.mark.fault(5)
def test_failure_in_the_middle_leaves_no_final_name(files, monkeypatch):
    def broken(*_arguments):
        raise RuntimeError("the device fell off the bus")

    monkeypatch.setattr(shard_module.Engine, "stream", broken)
    with pytest.raises(RuntimeError):
        embed_shard(files, CPU)
    assert os.listdir(files.embeddings.parent) == []
