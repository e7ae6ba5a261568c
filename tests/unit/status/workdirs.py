"""A working directory as the workflow leaves it, of one sample in four shards."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from tests.unit.samples import Sample, random_records
from virnucpro.embed.budget import Budget, write_budget

NOW = 2_000_000_000.0  # later than any file, but for those that are given a time
PLANNED = 5000.0  # tokens a second


def end_line(**facts: object) -> str:
    """The line of JSON that a command ends its log with."""
    return json.dumps({"step": "embed", "seconds": 1.0, **facts}) + "\n"


def set_time(path: Path, seconds_ago: float) -> None:
    os.utime(path, (NOW - seconds_ago, NOW - seconds_ago))


class Workdir:
    """Everything is done, until a method takes some of it back."""

    def __init__(self, root: Path) -> None:
        self.root = root
        records = random_records(50)
        made = Sample(root / "made", records, shard_count=4)
        self.names, self.members = made.names, made.members
        self.results = root / "results" / "s1"
        self.split = self.results / "split" / "a" / "shards"
        self.plans, self.embeddings = self.results / "plan" / "b", self.results / "embeddings" / "c"
        for folder, place in (
            (made.shards_dir, self.split),
            (made.plans_dir, self.plans),
            (made.embeddings_dir, self.embeddings),
        ):
            place.parent.mkdir(parents=True)
            shutil.move(folder, place)
        shutil.rmtree(made.root)
        self.h5ad = self.results / "embeddings.h5ad"
        self.h5ad.write_bytes(b"of no interest here")
        self.sheet = root / "config" / "samples.tsv"
        self.sheet.parent.mkdir()
        self.sheet.write_text("sample\tfasta\ns1\ts1.faa\n")
        self.budget = root / "resources" / "token_budget" / "demo-d.json"
        measured = Budget(
            *("demo", "cd" * 32, "some GPU", "float16", "tiles"),
            **{"tokens_per_step": 64, "bytes_per_token": None, "tokens_per_second": PLANNED},
            **{"readout": {}, "rates": {}, "reason": "why not"},
        )
        write_budget(self.budget, measured)
        for path in self.embeddings.iterdir():
            set_time(path, 500)
        set_time(self.h5ad, 400)

    def log(self, name: str, text: str, seconds_ago: float = 10) -> Path:
        path = self.root / "logs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        set_time(path, seconds_ago)
        return path

    def take_back(self, shard: str) -> None:
        """Remove the results of a shard, as before its job is done."""
        for path in self.embeddings.glob(f"{shard}.*"):
            path.unlink()
        self.h5ad.unlink(missing_ok=True)

    def tokens(self, shard: str) -> int:
        return json.loads((self.plans / f"{shard}.json").read_text())["tokens"]
