"""A directory of shards, put in place as one; nobody else's files are ever replaced by it."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from virnucpro.errors import InputError
from virnucpro.files import atomic_directory

__all__ = ["check_replaceable", "staged_directory"]

_OWN_FILE = re.compile(
    r"\d{5}-[0-9a-f]{12}\.fasta|manifest\.json|quarantine\.tsv|\.snakemake_timestamp"
)


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
    """Yield a temporary directory to fill, and move it to `target` when the block ends well.

    See `virnucpro.files.atomic_directory`; `target` is looked at once more before it is replaced.

    Args:
        target: the final path.

    Yields:
        A new directory beside `target`.

    Raises:
        InputError: `target` must not be replaced (see `check_replaceable`).
        OSError: making, syncing or renaming failed.
    """
    target = target.resolve()  # a link's directory is replaced, not the link
    with atomic_directory(target) as staging:
        yield staging
        check_replaceable(target)
