"""What the steps' files have in common: the numbers of their formats, and names that several know.

A number is raised when the bytes or the meaning of a step's output change, and only then. The
workflow passes the same numbers as rule parameters, so that raising one re-runs just the steps
whose output changes; each command refuses a number that is not its own.
"""

import zlib
from collections.abc import Callable
from pathlib import Path

from virnucpro.errors import InputError

__all__ = [
    "BUDGET_FORMAT",
    "EMBED_FORMAT",
    "EXTRA_ARRAYS",
    "LIMITED_IDS",
    "MERGE_FORMAT",
    "MODEL_FORMAT",
    "PLAN_FORMAT",
    "REPORT_FORMAT",
    "SPLIT_FORMAT",
    "TRACE_COLUMNS",
    "check_format",
    "extra_path",
    "trace_checksum",
]

MODEL_FORMAT = 1
SPLIT_FORMAT = 2
PLAN_FORMAT = 2
BUDGET_FORMAT = 2
EMBED_FORMAT = 2
MERGE_FORMAT = 3
REPORT_FORMAT = 4

EXTRA_ARRAYS = ("residues", "pseudo_perplexity")
"""Arrays that a shard may have beside its embeddings, as its receipt calls them."""

LIMITED_IDS: dict[str, Callable[[str], bool]] = {
    "uniprot-h5": lambda text: text not in ("", ".") and "/" not in text and "\0" not in text
}
"""The exports that not every id can have, and whether one can: HDF5 takes a "/" for a path."""

TRACE_COLUMNS = ("step", "items", "tokens", "seconds", "peak_memory_bytes", "note", "crc32")
"""Columns of a trace; the last is the CRC-32 of the line up to it, see `trace_checksum`."""


def check_format(what: str, found: object, expected: int, *, path: object = None) -> None:
    """Refuse a file or a caller that speaks another format number.

    Args:
        what: what carries the number, for the message ("plan", "split manifest", ...).
        found: the number that was found.
        expected: the number that this package writes and reads.
        path: the file, where there is one.

    Raises:
        InputError: the numbers differ.
    """
    if found != expected:
        raise InputError(
            f"{what} has format {found}, this version of virnucpro uses format {expected}",
            path=path,
            hint="remove the file so that it is made again, or use the version that wrote it",
        )


def extra_path(embeddings: Path, name: str) -> Path:
    """Give the file of one of `EXTRA_ARRAYS`, which lies beside the shard's embeddings."""
    return embeddings.with_suffix(f".{name}.npy")


def trace_checksum(line: str) -> str:
    """Give the last cell of a trace's line, from the others joined by tabs."""
    return f"{zlib.crc32(line.encode()):08x}"
