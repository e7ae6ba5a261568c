"""A directory that appears under its final name only when it is complete."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from virnucpro.errors import InputError
from virnucpro.files import sync_directory

__all__ = ["check_replaceable", "staged_directory"]

_OWN_FILE = re.compile(r"\d{5}\.fasta|manifest\.json|quarantine\.tsv|\.snakemake_timestamp")


def check_replaceable(target: Path) -> None:
    """Refuse a target that holds anything but the files of an earlier split.

    Replacing a directory removes what is in it, and a mistyped option must not cost anyone's data.

    Raises:
        InputError: the target is a file, or a directory with other files in it.
    """
    if not target.exists():
        return
    if not target.is_dir():
        raise InputError("is not a directory", path=target)
    strange = sorted(item.name for item in target.iterdir() if not _OWN_FILE.fullmatch(item.name))
    if strange:
        raise InputError(
            f"holds {strange[0]!r}, which is no file of a split, and would be replaced",
            path=target,
            hint="choose a directory for the shards alone",
        )


@contextlib.contextmanager
def staged_directory(target: Path) -> Iterator[Path]:
    """Give a temporary directory to fill, and move it to `target` when the block ends well.

    A directory at `target` is replaced. When the block raises, the temporary directory is removed
    and `target` stays as it was. The block must sync the files that it writes.

    Args:
        target: the final path.

    Yields:
        A new directory beside `target`.

    Raises:
        InputError: `target` must not be replaced (see `check_replaceable`).
        OSError: making, syncing or renaming failed.
    """
    target = target.resolve()  # a link's directory is replaced, not the link
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = _beside(target)
    staging.mkdir()
    try:
        yield staging
        sync_directory(staging)
        check_replaceable(target)
        _replace(staging, target)
        sync_directory(target.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _beside(target: Path) -> Path:
    return target.with_name(f".{target.name[:100]}.{os.getpid()}.{secrets.token_hex(4)}.tmp")


def _replace(staging: Path, target: Path) -> None:
    """Rename `staging` to `target`; a directory that is there goes aside first, then away."""
    if not target.exists():
        staging.rename(target)
        return
    old = _beside(target)
    target.rename(old)
    try:
        staging.rename(target)
    except OSError:
        old.rename(target)
        raise
    shutil.rmtree(old)
