"""Calls Snakemake as a user does."""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
STARTED = re.compile(r"^(?:local)?(?:rule|checkpoint) (\w+):$", re.MULTILINE)


@dataclass(frozen=True)
class Run:
    """What a call of Snakemake came to: its exit status, what it said, and the jobs it started."""

    status: int
    text: str

    @property
    def jobs(self) -> Counter[str]:
        """Jobs that were started (or, in a dry run, would be) by rule; `all` does nothing."""
        return Counter(STARTED.findall(self.text)) - Counter({"all": 1, "plans": 1})


def snakemake(workdir: Path, *arguments: str, workflow: Path = ROOT / "workflow") -> Run:
    """Call Snakemake on the workflow with `workdir` as its working directory.

    It is called by its full path, with nothing of the environment on PATH, from another folder.
    """
    command = [
        str(Path(sys.executable).parent / "snakemake"),
        *("--snakefile", str(workflow / "Snakefile")),
        *("--directory", str(workdir)),
        *("--cores", "2"),
        *arguments,
    ]
    done = subprocess.run(
        command,
        cwd=workdir.parent,
        env={**os.environ, "PATH": "/usr/bin:/bin"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return Run(done.returncode, done.stdout)


@dataclass(frozen=True)
class Sample:
    """Where a sample's intermediates are: under ids, of which the newest are meant."""

    workdir: Path
    name: str

    @property
    def results(self) -> Path:
        return self.workdir / "results" / self.name

    def newest(self, kind: str) -> Path:
        """Give the folder of the newest `split`, `plan` or `embeddings`."""
        return max((self.results / kind).iterdir(), key=lambda path: path.stat().st_mtime_ns)

    @property
    def split(self) -> Path:
        return self.newest("split")

    @property
    def shards(self) -> list[str]:
        """Give the names of the shards."""
        manifest = json.loads((self.split / "shards" / "manifest.json").read_text())
        return [shard["name"] for shard in manifest["shards"]]

    @property
    def plans(self) -> Path:
        return self.newest("plan")

    @property
    def embeddings(self) -> Path:
        return self.newest("embeddings")


def measured_budget(workdir: Path) -> Path:
    """Give the newest token budget."""
    folder = workdir / "resources" / "token_budget"
    return max(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns)
