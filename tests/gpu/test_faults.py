"""Faults of a real CUDA device. Run with ``pytest -m gpu``."""

import contextlib
import dataclasses
import pickle
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

from tests.unit.embed.builders import collate, random_proteins, random_sequences, random_state
from virnucpro.embed.engine import Engine
from virnucpro.embed.exact import ExactModel
from virnucpro.embed.job import EmbedOptions, ShardFiles
from virnucpro.embed.measure import write_measured_budget
from virnucpro.embed.readout import Readout
from virnucpro.embed.shard import embed_shard
from virnucpro.embed.step import StepShape
from virnucpro.errors import InputError
from virnucpro.files import read_json
from virnucpro.model.config import ModelConfig
from virnucpro.model.devices import select_device
from virnucpro.model.loading import build_model
from virnucpro.model.weights import fetch_model
from virnucpro.plan.build import plan_shard
from virnucpro.plan.parameters import PlanParameters
from virnucpro.sequences.shards import write_shard

pytestmark = pytest.mark.gpu

CONFIG = ModelConfig("tiny", layers=3, dim=320, heads=20)
LONGEST = 256


def make_engine(state, dtype=torch.float16, tokens=4096, exact=None):
    model = build_model(CONFIG, state, dtype=dtype, device="cuda")
    return Engine(model, StepShape.for_lengths(tokens, tokens // 3, LONGEST), Readout([3]), exact)


@pytest.mark.fault(17)
def test_sequence_that_does_not_fit_alone_is_quarantined_and_the_next_step_runs():
    engine = make_engine(random_state(CONFIG))
    batch = collate(random_sequences(4))
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(torch.cuda.memory_reserved() / total)
    taken = []
    for size in (1 << 20, 1 << 16, 1 << 12, 512):  # what is reserved, and still free
        with contextlib.suppress(torch.cuda.OutOfMemoryError):
            while True:
                taken.append(torch.empty(size, dtype=torch.uint8, device="cuda"))
    try:
        result = engine.embed(batch)
    finally:
        taken.clear()
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert {failure.reason for failure in result.failures} == {"out_of_memory"}
    assert sorted(failure.index for failure in result.failures) == [0, 1, 2, 3]
    assert np.isnan(result.pooled).all()
    assert np.isfinite(engine.embed(batch).pooled).all()


@pytest.mark.fault(20)
def test_nan_in_the_weights_of_one_layer_quarantines_every_row():
    state = random_state(CONFIG)
    state["layers.1.fc1.weight"][5, 7] = float("nan")

    def load(device):
        return build_model(CONFIG, state, dtype=torch.float32, device=device)

    exact = ExactModel(load, torch.device("cuda"))
    result = make_engine(state, exact=exact).embed(collate(random_sequences(5)))
    assert result.recomputed == 5
    assert [failure.reason for failure in result.failures] == ["not_finite"] * 5
    assert np.isnan(result.pooled).all()


@pytest.mark.fault(19)
def test_device_that_is_not_there_is_named():
    with pytest.raises(InputError, match="cuda:99"):
        select_device("cuda:99")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A shard of the demo model, planned, its budget measured on this device."""
    folder = tmp_path_factory.mktemp("shard")
    weights, receipt = folder / "w.safetensors", folder / "w.json"
    fetch_model("demo", weights, receipt)
    write_measured_budget(
        weights,
        receipt,
        folder / "budget.json",
        plan_token_budget=1024,
        max_sequence_length=LONGEST,
    )
    write_shard(folder / "00000.fasta", random_proteins(2000, longest=LONGEST))
    plan_shard(
        folder / "00000.fasta",
        folder / "00000.parquet",
        folder / "plan.json",
        PlanParameters(1024, LONGEST),
    )
    return ShardFiles(
        shard=folder / "00000.fasta",
        plan=folder / "00000.parquet",
        weights=weights,
        model_receipt=receipt,
        budget=folder / "budget.json",
        embeddings=folder / "calm" / "00000.npy",
        receipt=folder / "calm" / "00000.json",
        step_log=folder / "calm" / "00000.steps.tsv",
    )


def elsewhere(files, folder):
    names = ("embeddings", "receipt", "step_log")
    return dataclasses.replace(
        files, **{name: folder / getattr(files, name).name for name in names}
    )


# Runs a shard in a process of its own; FAULT happens when the fifth step is stored.
DRIVER = """
import os, pickle, signal, sys, time, torch
from virnucpro import log
from virnucpro.embed import checkpoints, shard
from virnucpro.embed.output import ShardOutput
log.configure()
checkpoints._SECONDS = 0.0
store = ShardOutput.store

def fail(self, number, *arguments):
    record = store(self, number, *arguments)
    if number == 5:
        time.sleep(0.5)  # the checkpoints of the steps before are written
        FAULT
    return record

ShardOutput.store = fail
shard.embed_shard(pickle.loads(bytes.fromhex(sys.argv[1])), shard.EmbedOptions(token_budget=2048))
"""
ASSERT = "torch.zeros(4, device='cuda')[torch.tensor([99], device='cuda')]"


def run(files, fault):
    return subprocess.run(
        [sys.executable, "-c", DRIVER.replace("FAULT", fault), pickle.dumps(files).hex()],
        capture_output=True,
        text=True,
    )


OPTIONS = EmbedOptions(token_budget=2048)


@pytest.fixture(scope="module")
def undisturbed(files):
    embed_shard(files, OPTIONS)
    return files.embeddings.read_bytes()


@pytest.mark.fault(18)
def test_poisoned_context_ends_the_process_and_the_next_one_continues(files, undisturbed, tmp_path):
    mine = elsewhere(files, tmp_path)
    poisoned = run(mine, ASSERT)
    assert poisoned.returncode not in (0, 2)
    assert "CUDA" in poisoned.stderr
    assert not mine.receipt.exists()
    embed_shard(mine, OPTIONS)
    assert mine.embeddings.read_bytes() == undisturbed


@pytest.mark.fault(1, 14)
@pytest.mark.parametrize("sent", ["SIGKILL", "SIGTERM"])
def test_killed_shard_continues_to_the_same_bits(files, undisturbed, tmp_path, sent, caplog):
    mine = elsewhere(files, tmp_path)
    killed = run(mine, f"os.kill(os.getpid(), signal.{sent})")
    assert killed.returncode == -getattr(signal, sent)  # the driver leaves SIGTERM as it is
    caplog.set_level("INFO")
    embed_shard(mine, OPTIONS)
    assert "in checkpoints of an earlier run" in caplog.text
    assert mine.embeddings.read_bytes() == undisturbed
    lines = mine.step_log.read_text().splitlines()[1:]
    steps = [int(line.split("\t")[0]) for line in lines]
    assert steps == list(range(read_json(mine.receipt)["steps"]))
