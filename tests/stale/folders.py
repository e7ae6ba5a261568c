"""Working directories of the table: made, changed, run with the stand-in, and looked at."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.workflow.snakemake_runs import ROOT, Run

STAND_IN = Path(__file__).with_name("stand_in.py")
SECONDS = 120
MANY = 1000  # tokens of a shard at which the stand-in makes four of them


def own_workflow(folder: Path) -> Path:
    """Make a copy of the workflow whose rules call the stand-in; return its Snakefile."""
    shutil.copytree(ROOT / "workflow", folder / "workflow")
    for path in (folder / "workflow" / "rules").glob("*.smk"):
        command = f"{sys.executable} -S -E {STAND_IN} "
        path.write_text(path.read_text().replace('"virnucpro ', f'"{command}'))
    return folder / "workflow" / "Snakefile"


@dataclass
class Folder:
    """A working directory: its configuration, its sheet, and what is run in it."""

    path: Path
    snakefile: Path
    config: dict[str, Any] = field(default_factory=dict)
    sheet: list[tuple[str, str]] = field(default_factory=list)

    @property
    def samples(self) -> list[str]:
        return list(dict.fromkeys(sample for sample, _ in self.sheet))

    def write(self) -> None:
        """Write configuration and sheet."""
        (self.path / "config").mkdir(parents=True, exist_ok=True)
        (self.path / "config" / "config.yaml").write_text(json.dumps(self.config))
        rows = "".join(f"{sample}\t{path}\n" for sample, path in self.sheet)
        (self.path / "config" / "samples.tsv").write_text("sample\tfasta\n" + rows)

    def copy(self, path: Path) -> Folder:
        """Copy everything, time stamps too."""
        shutil.copytree(self.path, path, symlinks=True)
        config = json.loads(json.dumps(self.config))
        return Folder(path, self.snakefile, config, list(self.sheet))

    def fresh(self, path: Path) -> Folder:
        """Copy what a user gave, and nothing that was made of it."""
        made = ("results", "resources", "logs", "benchmarks", ".snakemake", ".cache", "calls.jsonl")
        shutil.copytree(self.path, path, ignore=lambda folder, names: set(made) & set(names))
        return Folder(path, self.snakefile, self.config, list(self.sheet))

    def run(self, *arguments: str, fault: str = "", once: bool = False) -> Run:
        """Call Snakemake in a session of its own, perhaps with a fault."""
        command = [
            str(Path(sys.executable).parent / "snakemake"),
            *("--snakefile", str(self.snakefile), "--directory", str(self.path), "--cores", "2"),
            *arguments,
        ]
        environment = {**os.environ, "STAND_IN_FAULT": fault or "::"}
        environment["STAND_IN_ONCE"] = str(self.path / "ended") if once else ""
        (self.path / "ended").unlink(missing_ok=True)
        running = subprocess.Popen(
            command,
            cwd=self.path.parent,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            text, _ = running.communicate(timeout=SECONDS)
        except subprocess.TimeoutExpired:
            # Snakemake may hang in its handler of SIGTERM; what a user does then is the next end.
            os.killpg(running.pid, signal.SIGKILL)
            text, _ = running.communicate()
        return Run(running.returncode, text)

    def run_for(self, seconds: float, end: signal.Signals) -> None:
        """Call Snakemake, and send it and its jobs a signal after some seconds."""
        command = [
            *(str(Path(sys.executable).parent / "snakemake"), "--cores", "2"),
            *("--snakefile", str(self.snakefile), "--directory", str(self.path)),
        ]
        running = subprocess.Popen(
            command,
            cwd=self.path.parent,
            env={**os.environ, "STAND_IN_FAULT": "::"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            running.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(running.pid, end)
            running.wait(SECONDS)

    def results(self) -> dict[str, str]:
        """Return the content of all results by their place; not that of intermediates."""
        return {
            path.relative_to(self.path).as_posix(): path.read_text()
            for folder in [*self.samples, "_all"]
            for path in sorted((self.path / "results" / folder).rglob("*"))
            if path.is_file() and is_result(path.relative_to(self.path / "results" / folder))
        }

    def calls(self, what: str) -> list[tuple[str, str]]:
        """Return the steps and identities of what the stand-in noted."""
        path = self.path / "calls.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [(step, identity) for kind, step, identity in map(json.loads, lines) if kind == what]


def is_result(place: Path) -> bool:
    """Whether a file of a sample's folder is a result, and not what it was made of."""
    return place.parts[0] not in {"genes", "split", "shards", "plan", "embeddings", "requests"}


def make_folder(path: Path, snakefile: Path, *, samples: int, shards: int) -> Folder:
    """Make a working directory with one or two samples, each of two files, in one shard or four."""
    names = ["a", "b"][:samples]
    sheet = [(name, f"data/{name}{number}.faa") for name in names for number in (1, 2)]
    config = {
        "model": "data/weights.pt",
        "split": {"shard_tokens": MANY if shards > 1 else 10 * MANY},
        "merge": {"exports": ["npy"]},
    }
    folder = Folder(path, snakefile, config, sheet)
    (path / "data").mkdir(parents=True)
    (path / "data" / "weights.pt").write_text("weights")
    (path / "data" / "others.pt").write_text("others")
    for name in ["a", "b", "c", "d"]:
        for number in (1, 2):
            records = "".join(f">{name}{number}{i}\nMKT{name * (3 + i)}L\n" for i in range(4))
            (path / "data" / f"{name}{number}.faa").write_text(records.upper())
    folder.write()
    return folder
