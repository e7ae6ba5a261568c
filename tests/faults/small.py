"""A small sample that goes all the way, one function a step, quickly enough to be run 1,000 times.

The network is a stand-in (`tests.unit.embed.fast`); everything that is read and written is real.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.unit.embed import fast
from tests.unit.embed.builders import random_proteins
from tests.unit.model.conftest import make_esm2, published
from virnucpro.embed import measure as measure_module
from virnucpro.embed.budget import Budget
from virnucpro.embed.job import ShardFiles
from virnucpro.embed.measure import write_measured_budget
from virnucpro.embed.shard import embed_shard
from virnucpro.merge.sample import merge_sample
from virnucpro.model.weights import fetch_model
from virnucpro.plan.build import plan_shard
from virnucpro.plan.parameters import PlanParameters
from virnucpro.report import figures
from virnucpro.report import run as run_module
from virnucpro.report.plans import plans_report
from virnucpro.report.run import run_report
from virnucpro.report.step_logs import StepLog, summarise_step_logs
from virnucpro.sequences.manifest import SplitParameters
from virnucpro.sequences.split import split

TOKENS = 256


class Small:
    """A sample's folder; its steps may be called again and again.

    Args:
        folder: where everything is written.
        inputs: where FASTA file and model are, whose paths go into some outputs.
        rich: whether all is kept that can be: windows, residues, scores; without checkpoints.
    """

    def __init__(self, folder: Path, inputs: Path, *, rich: bool = False) -> None:
        self.rich = rich
        self.residues = folder / "residues.h5" if rich else None
        self.folder, self.inputs = folder, inputs
        self.fasta, self.published = inputs / "in.faa", inputs / "esm2_tiny.pt"
        self.shards, self.plans = folder / "shards", folder / "plan"
        self.records, self.embeddings = folder / "records.parquet", folder / "embeddings"
        self.h5ad, self.quarantine = folder / "embeddings.h5ad", folder / "quarantine.tsv"
        self.weights, self.model_receipt = folder / "model" / "w.st", folder / "model" / "w.json"
        self.budget_json, self.cache = folder / "budget" / "budget.json", folder / "cache"

    def write_inputs(self) -> None:
        """Write the FASTA file, the published model, and what the stand-in's embed asks for."""
        proteins = [letters.decode() for letters in random_proteins(60)]
        lines = [
            f">p{n} protein\n{letters}\n" for n, letters in enumerate([*proteins, proteins[0]])
        ]
        self.inputs.mkdir()
        self.fasta.write_text("".join(lines) + ">none\n\n")
        torch.save(published(make_esm2()), self.published)
        fast.write_model_receipt(self.inputs / "imaginary.json")
        fast.write_budget(self.inputs / "imaginary_budget.json", TOKENS)

    def split(self) -> None:
        split(
            [self.fasta],
            sample="s",
            shards_dir=self.shards,
            records=self.records,
            parameters=SplitParameters(shard_tokens=3500),
        )

    @property
    def names(self) -> list[str]:
        """Names of the shards, of which there are two."""
        return [path.stem for path in sorted(self.shards.glob("*.fasta"))]

    def plan(self) -> None:
        for name in self.names:
            plan_shard(
                self.shards / f"{name}.fasta",
                self.plans / f"{name}.parquet",
                self.plans / f"{name}.json",
                PlanParameters(TOKENS, fast.LONGEST, "window" if self.rich else "truncate", 20),
                cache_dir=self.cache,
            )

    def model(self) -> None:
        fetch_model(str(self.published), self.weights, self.model_receipt)

    def budget(self) -> None:
        write_measured_budget(
            self.weights, self.model_receipt, self.budget_json, device="cpu", cache_dir=self.cache
        )

    def embed(self) -> None:
        more = {"pooling": "none", "pseudo_perplexity": "one-pass"} if self.rich else {}
        for name in self.names:
            embed_shard(self.shard_files(name), dataclasses.replace(fast.CPU, **more))

    def merge(self) -> None:
        exports = {"parquet": "e.parquet", "npy": "e.npy", "uniprot-h5": "e.h5"}
        merge_sample(
            shards_dir=self.shards,
            records=self.records,
            plans_dir=self.plans,
            embeddings_dir=self.embeddings,
            output=self.h5ad,
            quarantine=self.quarantine,
            residues=self.residues,
            exports={kind: self.folder / "exports" / name for kind, name in exports.items()},
        )

    def report(self) -> None:
        folder = self.folder / "reports"
        plans_report(self.shards, self.plans, folder / "plans.json", folder / "plans.tsv")
        run_report(
            shards_dir=self.shards,
            plans_dir=self.plans,
            embeddings_dir=self.embeddings,
            records=self.records,
            quarantine=self.quarantine,
            json_path=folder / "run.json",
            tsv_path=folder / "run.tsv",
            report_dir=folder,
        )

    def shard_files(self, name: str) -> ShardFiles:
        return ShardFiles(
            shard=self.shards / f"{name}.fasta",
            plan=self.plans / f"{name}.parquet",
            weights=self.weights,
            model_receipt=self.inputs / "imaginary.json",
            budget=self.inputs / "imaginary_budget.json",
            embeddings=self.embeddings / f"{name}.npy",
            receipt=self.embeddings / f"{name}.json",
            step_log=self.embeddings / f"{name}.steps.tsv",
        )

    def contents(self) -> dict[str, bytes]:
        """Give every file by its place; step logs and rates, which hold times, without content."""
        return {
            path.relative_to(self.folder).as_posix(): b""
            if path.name.endswith("steps.tsv")
            else path.read_bytes()
            for path in sorted(self.folder.rglob("*"))
            if path.is_file()
        }


STEPS = ("split", "plan", "model", "budget", "embed", "merge", "report")


def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the stand-ins in place: of the network, its measured budget, the drawn figures."""
    fast.install(monkeypatch)
    told = {"readout": {}, "rates": {}, "reason": ""}
    found = Budget("tiny", fast.WEIGHTS, "cpu", "float32", "imaginary", TOKENS, None, 1.0, **told)
    monkeypatch.setattr(measure_module, "load_model", lambda *_, **__: fast.Model())
    monkeypatch.setattr(measure_module, "measure_budget", lambda *_, **__: found)
    for name in ("length_distribution", "packing_efficiency", "packing_by_shard", "duplicates"):
        monkeypatch.setattr(figures, name, functools.partial(_draw, name))
    monkeypatch.setattr(figures, "throughput", functools.partial(_draw, "throughput"))

    def timeless(step_logs: Sequence[StepLog], tokens_per_step: Sequence[int]) -> Any:
        still = [  # no two runs share their seconds
            dataclasses.replace(
                step_log,
                seconds=np.ones_like(step_log.seconds),
                peak_memory_bytes=np.zeros_like(step_log.peak_memory_bytes),
            )
            for step_log in step_logs
        ]
        return summarise_step_logs(still, tokens_per_step)

    monkeypatch.setattr(run_module, "summarise_step_logs", timeless)


def _draw(name: str, *arguments: object) -> None:
    with contextlib.suppress(StopIteration):
        path = next(a for a in reversed(arguments) if isinstance(a, Path))
        from virnucpro.files import write_bytes

        write_bytes(path, name.encode())
