"""Calls Snakemake as a user does."""

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
