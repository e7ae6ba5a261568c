import numpy as np
import torch

from virnucpro.embed.batch import PackedBatch
from virnucpro.embed.job import ShardFiles
from virnucpro.embed.measure import write_measured_budget
from virnucpro.model.config import expected_tensors, lm_head_tensors
from virnucpro.model.weights import fetch_model
from virnucpro.plan.build import plan_shard
from virnucpro.plan.parameters import PlanParameters
from virnucpro.sequences.shards import write_shard


def random_state(config, seed=0):
    """Canonical weights of a model with its head, random and of the size of trained ones."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in (expected_tensors(config) | lm_head_tensors(config)).items():
        noise = torch.randn(shape, generator=generator)
        if name.endswith("layer_norm.weight") or name.endswith("after.weight"):
            state[name] = 1 + 0.1 * noise
        elif len(shape) == 1:
            state[name] = 0.1 * noise
        else:
            state[name] = noise / shape[-1] ** 0.5
    return state


def collate(sequences):
    """A packed batch of token tensors."""
    lengths = [len(s) for s in sequences]
    bounds = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    positions = torch.cat([torch.arange(n, dtype=torch.int32) for n in lengths])
    return PackedBatch(torch.cat(sequences), positions, torch.from_numpy(bounds))


def random_sequences(count, seed=0, longest=200):
    random = np.random.default_rng(seed)
    return [
        torch.from_numpy(np.concatenate([[0], random.integers(4, 24, size=n), [2]]))
        for n in random.integers(1, longest, size=count)
    ]


def random_proteins(count, longest=150, seed=0):
    random = np.random.default_rng(seed)
    letters = np.frombuffer(b"ACDEFGHIKLMNPQRSTVWYX", dtype=np.uint8)
    return [random.choice(letters, n).tobytes() for n in random.integers(1, longest, size=count)]


def make_demo(folder, longest, **asked):
    """The demo model, converted, with its token budget from plans of 512 tokens."""
    weights, receipt = folder / "demo.safetensors", folder / "demo.json"
    fetch_model("demo", weights, receipt)
    options = {"device": "cpu", "plan_token_budget": 512, "max_sequence_length": longest} | asked
    write_measured_budget(weights, receipt, folder / "budget.json", **options)
    return folder


def make_shard(folder, demo, sequences, longest, token_budget=512, **options):
    """A shard and its plan, to be embedded by the demo model."""
    folder.mkdir(exist_ok=True)
    fasta, plan = folder / "00000.fasta", folder / "00000.parquet"
    write_shard(fasta, sequences)
    parameters = PlanParameters(token_budget, longest, **options)
    plan_shard(fasta, plan, folder / "00000.json", parameters)
    return ShardFiles(
        shard=fasta,
        plan=plan,
        weights=demo / "demo.safetensors",
        model_receipt=demo / "demo.json",
        budget=demo / "budget.json",
        embeddings=folder / "out" / "00000.npy",
        receipt=folder / "out" / "00000.json",
        step_log=folder / "out" / "00000.steps.tsv",
    )
