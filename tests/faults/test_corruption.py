"""Bits flip and files are cut short, in every kind of intermediate file, between two steps.

The steps that follow must come to the undisturbed result, or end with an error that names the file.
"""

import random
import re
import shutil

import pytest

from tests.faults.injector import new_process
from tests.faults.small import STEPS, Small, stand_ins
from virnucpro.embed import checkpoints
from virnucpro.errors import VirnucproError

# For each kind of file: which it is, and the step that was the last before it was damaged.
KINDS = {
    "shard": ("shards/00000-*.fasta", "split"),
    "manifest": ("shards/manifest.json", "split"),
    "quarantine of split": ("shards/quarantine.tsv", "split"),
    "records": ("records.parquet", "split"),
    "plan": ("plan/00001-*.parquet", "plan"),
    "plan's report": ("plan/00001-*.json", "plan"),
    "cached plan": ("cache/plans", "split"),
    "weights": ("model/w.st", "model"),
    "weights' receipt": ("model/w.json", "model"),
    "token budget": ("imaginary_budget.json", "budget"),
    "embeddings": ("embeddings/00000-????????????.npy", "embed"),
    "residues": ("embeddings/00001-*.residues.npy", "embed"),
    "scores": ("embeddings/00000-*.pseudo_perplexity.npy", "embed"),
    "embeddings' receipt": ("embeddings/00000-????????????.json", "embed"),
    "step_log": ("embeddings/00000-*.steps.tsv", "embed"),
}
RESULTS = (
    *("embeddings.h5ad", "residues.h5", "quarantine.tsv"),
    *("reports/run.json", "reports/plans.json"),
)
SEEDS = [
    *(pytest.param(seed, id=str(seed)) for seed in range(5)),
    *(pytest.param(seed, id=str(seed), marks=pytest.mark.long) for seed in range(5, 60)),
]


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    """An undisturbed run, and a copy of it after each step."""
    with pytest.MonkeyPatch.context() as patch:
        stand_ins(patch)
        folder = tmp_path_factory.mktemp("calm")
        small = Small(folder / "run", folder / "inputs", rich=True)
        small.write_inputs()
        for step in STEPS:
            getattr(small, step)()
            shutil.copytree(small.folder, folder / step)
        return small


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    stand_ins(monkeypatch)
    monkeypatch.setattr(checkpoints, "_SECONDS", 0.0)


def damage(path, seed):
    """Flip a bit, or cut the file short."""
    rng = random.Random(seed)
    content = bytearray(path.read_bytes())
    place = rng.randrange(len(content))
    if seed % 3:
        content[place] ^= 1 << rng.randrange(8)
    else:
        del content[place:]
    path.write_bytes(content)


@pytest.mark.fault(7, 8)
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", KINDS)
def test_damaged_file_is_named_or_made_again_and_never_merged(kind, seed, calm, tmp_path, caplog):
    name, after = KINDS[kind]
    if kind == "cached plan":
        after = "plan"
    small = Small(tmp_path / "run", tmp_path / "inputs", rich=True)
    shutil.copytree(calm.folder.parent / after, small.folder)
    shutil.copytree(calm.inputs, small.inputs)
    folder = small.inputs if name.startswith("imaginary") else small.folder
    (damaged,) = folder.glob(name)
    if damaged.is_dir():
        damaged = sorted(damaged.iterdir())[0]
    damage(damaged, seed)
    new_process()
    small.fasta = calm.fasta  # whose path stands in the manifest
    small.published = calm.published
    first = STEPS.index(after) + (kind not in {"cached plan", "weights", "weights' receipt"})
    refusal = None
    try:
        for step in STEPS[first:]:
            getattr(small, step)()
    except VirnucproError as error:
        refusal = str(error)
    if refusal is not None:
        shard = re.search(r"\d{5}", name)
        named = refusal + caplog.text
        assert damaged.name in named or (shard and f"shard {shard[0]}" in named), refusal
        return
    for result in RESULTS:
        mine, theirs = (folder / result for folder in (small.folder, calm.folder))
        assert mine.read_bytes() == theirs.read_bytes(), f"{result} holds the damage"
