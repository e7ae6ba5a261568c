"""A `conda` for machines that reach no channel: it makes virtual environments of the same list.

Names and ranges of an environment file are those of the Python index but for a few names, so what
pip installs is what conda would, from another builder. Everything else of `--sdm conda`
is Snakemake's own: the environment, its script after deployment, and rules that run in it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import yaml

IN_PYPI = {"matplotlib-base": "matplotlib", "pytorch": "torch"}
NOT_IN_PYPI = {"pip", "python"}


def install_conda(folder: Path) -> Path:
    """Write a `conda` and its `activate` into `folder`, and give the folder for PATH."""
    programs = folder / "bin"
    programs.mkdir(parents=True)
    conda, activate = programs / "conda", programs / "activate"
    conda.write_text(f"#!/bin/sh\nexec '{sys.executable}' '{__file__}' \"$@\"\n")
    conda.chmod(0o755)
    activate.write_text('. "$1/bin/activate"\n')
    return programs


def requirements(environment: Path) -> list[str]:
    """Give an environment file's list as requirements of pip."""
    found = []
    for entry in yaml.safe_load(environment.read_text())["dependencies"]:
        name, _, limit = entry.partition(" ")
        if name not in NOT_IN_PYPI:
            limit = limit.replace("=", "==", 1) if limit.startswith("=") else limit
            found.append(IN_PYPI.get(name, name) + limit)
    return found


def main(words: list[str]) -> None:
    """Answer as conda does to what Snakemake asks."""
    if words == ["--version"]:
        print("conda 25.1.0")
    elif words[0] == "info":
        programs = Path(subprocess.check_output(["which", "conda"], text=True).strip()).parent
        print(json.dumps({"conda_prefix": str(programs.parent), "platform": "linux-64"}))
    elif words[0] == "config":
        print(json.dumps({"get": {"channel_priority": "strict"}}))
    elif words[:2] == ["env", "create"]:
        prefix = words[words.index("--prefix") + 1]
        listed = requirements(Path(words[words.index("--file") + 1]))
        subprocess.check_call([sys.executable, "-m", "venv", prefix])
        # Compiling all of torch takes as long as installing it; a run imports a part.
        install = [f"{prefix}/bin/python", "-m", "pip", "install", "-q", "--no-compile"]
        subprocess.check_call([*install, *listed])
    elif words[0] != "clean":
        raise SystemExit(f"the stand-in does not know: conda {' '.join(words)}")


if __name__ == "__main__":
    main(sys.argv[1:])
