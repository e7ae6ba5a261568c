"""Checks of what is installed: Python, torch, Snakemake and its plugins, schedulers."""

from __future__ import annotations

import platform
import re
import shutil
import sys
from importlib import metadata
from pathlib import Path

import virnucpro
from virnucpro.doctor.finding import Finding, Settings, absent, broken, ok, warning

__all__ = ["check_plugins", "check_python", "check_scheduler", "check_snakemake", "check_torch"]

_PYTHON = (3, 11)
_TORCH = (2, 10)  # brought torch.nn.attention.varlen
_SNAKEMAKE = (9, 27)  # as workflow/Snakefile asks for
_PLUGINS = "snakemake-executor-plugin-"
# What submits jobs, whose it is, and the executor plugin that calls it.
_SCHEDULERS = {
    "sbatch": ("SLURM", "slurm"),
    "qsub": ("PBS or Grid Engine", "cluster-generic"),
    "bsub": ("LSF", "lsf"),
    "condor_submit": ("HTCondor", "htcondor"),
    "flux": ("Flux", "flux"),
    "oarsub": ("OAR", "cluster-generic"),
}
_OURS = ("slurm", "cluster-generic")  # of the extra `cluster`


def check_python(_settings: Settings) -> Finding:
    """Find which Python runs which version of this package."""
    text = (
        f"{platform.python_version()} ({sys.executable}); virnucpro {virnucpro.__version__} "
        f"in {Path(virnucpro.__file__).parent}; {platform.platform()}"
    )
    if sys.version_info[:2] < _PYTHON:
        return broken("python", text, "install Python 3.11 or newer, and virnucpro with it")
    if not sys.platform.startswith("linux"):
        return warning("python", text, "use Linux: virnucpro is tested on nothing else")
    return ok("python", text)


def check_torch(_settings: Settings) -> Finding:
    """Find torch's version and what it was built for."""
    remedy = "pip install 'torch>=2.10'; https://pytorch.org/get-started has the builds"
    try:
        import torch
    except (ImportError, OSError) as error:
        return broken("torch", f"cannot be imported: {str(error).splitlines()[0]}", remedy)
    build = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
    text = f"{torch.__version__}, {build}, {torch.get_num_threads()} threads"
    return (
        broken("torch", text, remedy) if _number(torch.__version__) < _TORCH else ok("torch", text)
    )


def check_snakemake(_settings: Settings) -> Finding:
    """Find the version of Snakemake that `virnucpro run` calls."""
    minimum = ".".join(map(str, _SNAKEMAKE))
    remedy = f"pip install 'snakemake>={minimum}'"
    try:
        version = metadata.version("snakemake")
    except metadata.PackageNotFoundError:
        return broken("snakemake", "is not installed beside this Python", remedy)
    if _number(version) < _SNAKEMAKE:
        return broken("snakemake", f"{version}, and the workflow needs {minimum}", remedy)
    return ok("snakemake", version)


def check_plugins(_settings: Settings) -> Finding:
    """Find Snakemake's executor plugins, which submit jobs."""
    plugins = _plugins()
    if not plugins:
        return absent(
            "plugins",
            "no executor plugin: runs stay on this machine",
            "for clusters, pip install 'virnucpro[cluster]'",
        )
    return ok("plugins", ", ".join(f"{name} {version}" for name, version in plugins.items()))


def check_scheduler(_settings: Settings) -> Finding:
    """Find the commands of schedulers, and whether the plugins that call them are there."""
    found = {command: path for command in _SCHEDULERS if (path := shutil.which(command))}
    if not found:
        return absent("scheduler", f"none of {', '.join(_SCHEDULERS)} is on the PATH")
    text = ", ".join(f"{_SCHEDULERS[command][0]} ({path})" for command, path in found.items())
    plugins = _plugins()
    lacking = sorted({_SCHEDULERS[command][1] for command in found} - plugins.keys())
    if lacking:
        packages = [
            "'virnucpro[cluster]'" if name in _OURS else _PLUGINS + name for name in lacking
        ]
        return warning(
            "scheduler",
            f"{text}; Snakemake has no plugin {', '.join(lacking)} to submit to it",
            f"pip install {' '.join(dict.fromkeys(packages))}; docs/clusters.md has the profiles",
        )
    return ok("scheduler", text)


def _plugins() -> dict[str, str]:
    """Return the versions of the executor plugins by name."""
    found = {
        (distribution.metadata["Name"] or "").lower().replace("_", "-"): distribution.version
        for distribution in metadata.distributions()
    }
    return {
        name.removeprefix(_PLUGINS): version
        for name, version in sorted(found.items())
        if name.startswith(_PLUGINS)
    }


def _number(version: str) -> tuple[int, int]:
    """Return the first two numbers of a version; zeros for what has none."""
    found = re.match(r"(\d+)\.(\d+)", version)
    return (int(found[1]), int(found[2])) if found else (0, 0)
