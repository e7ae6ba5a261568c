"""A stand-in for model and engine: the right shapes at once, each row made of its tokens alone."""

import itertools
import time
import zlib

import numpy as np
import pytest
import torch

from tests.unit.embed.builders import random_proteins
from virnucpro.embed import shard as shard_module
from virnucpro.embed import tokens as tokens_module
from virnucpro.embed.engine import Failure, StepResult
from virnucpro.embed.job import EmbedOptions, ShardFiles
from virnucpro.embed.readout import Readout
from virnucpro.files import write_json
from virnucpro.formats import BUDGET_FORMAT
from virnucpro.model.receipt import Receipt, write_receipt
from virnucpro.plan.build import plan_shard
from virnucpro.plan.parameters import PlanParameters
from virnucpro.sequences.shards import write_shard

DIM = 16
LONGEST = 120
CPU = EmbedOptions(device="cpu")
WEIGHTS = "ab" * 32


class Model:
    device, precision = torch.device("cpu"), "float32"

    class backend:
        name = "imaginary"

    def resolve_layer(self, layer):
        return layer % 7


class Engine:
    """Computes nothing. `before` is called with each step's number as the step is launched."""

    before = staticmethod(lambda _number: None)
    seconds = 0.0
    launched = 0
    splits = True  # whether some steps are said to have been split

    def __init__(self, _model, shape, readout, _exact_model):
        self.shape, self.layers = shape, readout.layers
        self.residues, self.likelihood = readout.residues, readout.likelihood

    def stream(self, batches):
        waiting = None  # as the real one: a step is under way while the one before is handed out
        for batch in batches:
            Engine.before(Engine.launched)
            Engine.launched += 1
            time.sleep(Engine.seconds)
            if waiting is not None:
                yield waiting, self.result(waiting)
            waiting = batch
        if waiting is not None:
            yield waiting, self.result(waiting)

    def result(self, batch):
        bounds, tokens = batch.cu_seqlens.tolist(), batch.tokens.numpy()
        rows = [
            np.random.default_rng(zlib.crc32(tokens[start:end].tobytes())).random(
                (len(self.layers), DIM), np.float32
            )
            for start, end in itertools.pairwise(bounds)
        ]
        rounding = np.float32(1e-6 * self.shape.tokens)  # another T, other last bits
        result = StepResult(np.stack(rows) + rounding)
        for index, row in enumerate(result.pooled):
            if row[0, 0] < 0.02:  # some sequences cannot be embedded
                row[:] = np.nan
                result.failures.append(Failure(index, "not_finite", "NaN or infinity"))
        if self.likelihood:
            result.likelihood = -result.pooled[:, 0, 0]
        if self.residues is not None:
            lengths = np.diff(batch.pooled_tokens)[:, 0].tolist()
            result.residues = [
                None if np.isnan(row).any() else np.repeat(row[None], length, axis=0)
                for row, length in zip(result.pooled, lengths, strict=True)
            ]
        result.recomputed = len(result.failures)
        result.splits = int(self.splits and result.pooled[0, 0, 1] < 0.1)
        return result


def install(monkeypatch):
    """Let `embed_shard` run without a model."""
    monkeypatch.setattr(shard_module, "Engine", Engine)
    monkeypatch.setattr(shard_module, "load_model", lambda *_, **__: Model())
    monkeypatch.setattr(tokens_module, "_budget_here", lambda budget, *_: budget)
    monkeypatch.setattr(shard_module, "sha256_in_background", lambda _path: None)
    monkeypatch.setattr(Engine, "launched", 0)
    monkeypatch.setattr(Engine, "before", staticmethod(lambda _number: None))
    monkeypatch.setattr(Engine, "seconds", 0.0)


@pytest.fixture
def fast(monkeypatch):
    install(monkeypatch)
    return Engine


def make_files(
    folder, count=300, token_budget=256, out="out", longest=150, proteins=None, **options
):
    """A shard and its plan, and the budget of a device that is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    files = ShardFiles(
        shard=folder / "00000.fasta",
        plan=folder / "00000.parquet",
        weights=folder / "weights",
        model_receipt=folder / "model.json",
        budget=folder / "budget.json",
        embeddings=folder / out / "00000.npy",
        receipt=folder / out / "00000.json",
        step_log=folder / out / "00000.steps.tsv",
    )
    write_shard(files.shard, proteins or random_proteins(count, longest))
    plan_shard(
        files.shard,
        files.plan,
        folder / "00000.json",
        PlanParameters(token_budget, LONGEST, **options),
    )
    write_model_receipt(files.model_receipt)
    write_budget(files.budget, token_budget)
    return files


def write_model_receipt(path):
    """Write the receipt of weights that are not there."""
    facts = {"layers": 6, "dim": DIM, "heads": 1, "parameters": 1, "dtype": "float32"}
    flags = {"has_lm_head": True, "demo": True}
    write_receipt(path, Receipt("imaginary", "imaginary", "", WEIGHTS, **facts, **flags))


def write_budget(path, tokens_per_step, **readout):
    """Write the budget of the stand-in on a CPU."""
    budget = {
        "model": "imaginary",
        "weights_sha256": WEIGHTS,
        "device": "cpu",
        "dtype": "float32",
        "backend": "imaginary",
        "tokens_per_step": tokens_per_step,
        "bytes_per_token": None,
        "tokens_per_second": 1.0,
        "readout": Readout([6]).facts() | readout,
        "rates": {},
        "reason": "",
    }
    write_json(path, {"format": BUDGET_FORMAT, **budget}, sealed=True)


def bytes_of(files):
    """What must not depend on what happened on the way: array and receipt."""
    return files.embeddings.read_bytes(), files.receipt.read_bytes()
