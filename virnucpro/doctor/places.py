"""Checks of folders: disk, cache, locks, and models on disk."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from virnucpro.doctor.finding import Finding, Settings, absent, broken, ok, warning
from virnucpro.embed.device_lock import LOCK_DIR, lock_folder
from virnucpro.errors import VirnucproError

__all__ = ["check_cache", "check_disk", "check_locks", "check_models"]

_LITTLE = 10e9  # bytes free below which a run of some size will not fit
_NETWORK = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "lustre", "gpfs", "beegfs", "ceph", "glusterfs", "fuse.sshfs"}
)
_MODELS = Path("resources/models")  # of a working directory
_KEPT = ("plans", "genes", "rates", "triton")  # folders of the cache


def check_disk(settings: Settings) -> Finding:
    """Find whether there is room where runs are to be, and for temporary files."""
    workdir, temporary = _existing(settings.workdir), Path(tempfile.gettempdir())
    text = ", ".join(
        f"{shutil.disk_usage(folder).free / 1e9:,.0f} GB free in {folder}"
        for folder in dict.fromkeys((workdir, temporary))
    )
    if problem := _unwritable(workdir):
        return broken(
            "disk",
            f"{workdir} cannot be written to: {problem}",
            "run in a folder of your own, or -o",
        )
    if shutil.disk_usage(workdir).free < _LITTLE:
        return warning(
            "disk", text, "`virnucpro run --plan-only` says what a run needs; free that, or use -o"
        )
    return ok("disk", text)


def check_cache(settings: Settings) -> Finding:
    """Find whether the cache folder can be used, and what it has."""
    folder = settings.cache_dir.absolute()
    remedy = "set cache_dir to a folder that you can write to"
    if folder.exists() and not folder.is_dir():
        return broken("cache", f"{folder} is no folder", remedy)
    if problem := _unwritable(_existing(folder)):
        return broken("cache", f"{folder} cannot be written to: {problem}", remedy)
    if not folder.exists():
        return absent("cache", f"{folder} is made by the first run")
    kept = {name: sum(path.is_file() for path in (folder / name).rglob("*")) for name in _KEPT}
    return ok("cache", f"{folder}: files of " + ", ".join(f"{n} {c:,}" for n, c in kept.items()))


def check_locks(_settings: Settings) -> Finding:
    """Find whether jobs can lock GPUs against one another."""
    folder = lock_folder()
    remedy = f"set {LOCK_DIR} to a folder on a disk of this machine that all jobs can write to"
    if problem := _unwritable(folder):
        return broken("locks", f"{folder} cannot be written to: {problem}", remedy)
    kind = _file_system(folder)
    if kind in _NETWORK:
        return broken("locks", f"{folder} is on a network file system ({kind})", remedy)
    if not _can_lock(folder):
        return broken("locks", f"files in {folder} ({kind}) cannot be locked", remedy)
    for path in sorted(folder.glob("virnucpro-*.lock")):
        if not os.access(path, os.R_OK):
            return broken(
                "locks", f"{path} cannot be read", "have its owner remove it, or chmod a+r it"
            )
    return ok("locks", f"{folder} ({kind})")


def check_models(settings: Settings) -> Finding:
    """Find which models are on this machine, and whether their files are whole."""
    from virnucpro.model.config import KNOWN_MODELS
    from virnucpro.model.demo import DemoSource
    from virnucpro.model.named import find_local
    from virnucpro.model.weights import verify_model

    checks: dict[Path, Callable[[], object]] = {
        path: partial(verify_model, path, path.with_suffix(".json"))
        for path in sorted((settings.workdir / _MODELS).glob("*.safetensors"))
    }
    for name in KNOWN_MODELS:
        if name != DemoSource.name and (source := find_local(name)) is not None:
            checks[source.files[-1]] = source.read
    whole, damaged = [], []
    for path, check in checks.items():
        try:
            check()
            whole.append(str(path))
        except VirnucproError as error:
            damaged.append(f"{path}: {error.message}")
    text = "\n".join([f"whole: {', '.join(whole) or 'none'}", *damaged])
    if damaged:
        return broken("models", text, "remove what is damaged, and fetch it again")
    if not checks:
        return absent(
            "models", "none but the demo model, which is built in", "virnucpro model fetch NAME"
        )
    return ok("models", text)


def _existing(folder: Path) -> Path:
    """Return a folder, or the nearest one above it that is there."""
    folder = folder.absolute()
    return next(each for each in (folder, *folder.parents) if each.exists())


def _unwritable(folder: Path) -> str | None:
    """Return why no file can be made in a folder, or None where one can."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return error.strerror or str(error)


def _can_lock(folder: Path) -> bool:
    """Whether a lock on a file of a folder keeps others out, as `flock` is to."""
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".virnucpro-doctor-") as ours:
        try:
            fcntl.flock(ours, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with Path(ours.name).open("rb") as others:
                fcntl.flock(others, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
    return False


def _file_system(folder: Path) -> str:
    """Return the kind of file system that a folder is on, as Linux names it."""
    try:
        mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:
        return "unknown"
    target = folder.resolve()
    # The last of equal ones hides the others.
    inside = [m for m in mounts if target.is_relative_to(m[1].replace("\\040", " "))]
    return sorted(inside, key=lambda mount: len(mount[1]))[-1][2] if inside else "unknown"
