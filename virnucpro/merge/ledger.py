"""The ledger: each record of the input is one row, of embeddings.h5ad or of quarantine.tsv.

The check reads the files that were written. It does not trust the counters of the code that wrote
them.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
import numpy.typing as npt

from virnucpro.errors import DataError
from virnucpro.merge.tables import read_table, write_table

__all__ = [
    "QuarantineRow",
    "check_ledger",
    "count_nul",
    "hash_ids",
    "printable_id",
    "printable_ids",
    "read_quarantine",
    "write_quarantine",
]

_BLOCK = 8192
_EXAMPLES = 10


class QuarantineRow(NamedTuple):
    """A row of a quarantine table: a record without an embedding."""

    sample: str
    id: str
    file: str
    line: str
    length: str  # residues after normalising
    reason: str
    detail: str


Hashes = npt.NDArray[np.int64]
Ids = Callable[[], Iterator[str]]


def printable_id(text: str) -> str:
    """Replace NUL by U+2400, the sign for it: an HDF5 string ends at its first NUL."""
    return text.replace("\0", "\u2400")


def printable_ids(texts: list[str]) -> list[str]:
    """Apply `printable_id` to many texts, faster."""
    return list(map(printable_id, texts)) if count_nul(texts) else texts


def count_nul(texts: list[str]) -> int:
    """Count the texts that hold a NUL; fast if none does, which is nearly always so."""
    return sum("\0" in text for text in texts) if "\0" in "".join(texts) else 0


def hash_ids(ids: Iterable[str]) -> Hashes:
    """Hash ids to 64 bits each, so that ten million of them take 80 MB.

    Python's string hash is keyed by the process: the numbers are for comparing within one run and
    must not be stored. Where two are equal, `check_ledger` looks at the ids themselves.
    """
    return np.fromiter(map(hash, ids), dtype=np.int64)


def read_quarantine(path: Path) -> Iterator[QuarantineRow]:
    """Read the rows of a quarantine table.

    Raises:
        DataError: the file is missing or damaged, or has other columns.
    """
    return (QuarantineRow(**row) for row in read_table(path, QuarantineRow._fields))


def write_quarantine(path: Path, rows: Iterable[QuarantineRow]) -> None:
    """Write a quarantine table; the same rows give the same bytes."""
    write_table(path, QuarantineRow._fields, rows)


def check_ledger(h5ad: Path, quarantine: Path, *, read: int, expected: Ids) -> tuple[int, int]:
    """Open the two result files and account for every record of the input exactly once.

    Args:
        h5ad: the merged embeddings; rows of X and of obs are counted.
        quarantine: the final quarantine table.
        read: number of records of the input.
        expected: gives a fresh iterator over the ids of the input, each as `printable_id`.

    Returns:
        Rows embedded, rows quarantined.

    Raises:
        DataError: X and obs differ in rows; or ids are missing, unexpected or doubled (the first
            ten and their number are listed).
    """

    def accounted() -> Iterator[str]:
        refused = (printable_id(row.id) for row in read_quarantine(quarantine))
        return itertools.chain(_h5ad_ids(h5ad), refused)

    with h5py.File(h5ad, "r") as handle:
        embedded, in_obs = len(handle["X"]), len(handle["obs/_index"])
    if embedded != in_obs:
        raise DataError(f"ledger: X has {embedded} rows, obs has {in_obs}")
    in_input, in_output = hash_ids(expected()), hash_ids(accounted())
    in_input.sort()
    in_output.sort()
    problems = [_list_doubled(in_output, accounted)]
    if not np.array_equal(in_input, in_output):
        problems.append(_list_ids("missing", np.setdiff1d(in_input, in_output), expected()))
        problems.append(
            _list_ids("not in the input", np.setdiff1d(in_output, in_input), accounted())
        )
    if any(problems) or len(in_output) != read:
        raise DataError(
            f"ledger: {read} records were read, {embedded} are embedded and "
            f"{len(in_output) - embedded} quarantined" + "".join(problems),
            hint="the records, shards or plans were changed after they were written: remove the "
            "sample's results and run again",
        )
    return embedded, len(in_output) - embedded


def _h5ad_ids(path: Path) -> Iterator[str]:
    with h5py.File(path, "r") as handle:
        index = handle["obs/_index"]
        for start in range(0, len(index), _BLOCK):
            yield from map(bytes.decode, index[start : start + _BLOCK])


def _list_ids(what: str, hashes: Hashes, ids: Iterator[str]) -> str:
    """Name the first of the ids whose hash is among the sorted `hashes`."""
    if not len(hashes):
        return ""

    def among(text: str) -> bool:
        place = bisect.bisect_left(hashes, hash(text))
        return place < len(hashes) and hashes[place] == hash(text)

    return _problem(len(hashes), what, itertools.islice(filter(among, ids), _EXAMPLES))


def _list_doubled(found: Hashes, ids: Ids) -> str:
    """Name the ids behind equal hashes, which are sorted; ids of equal hash may still differ."""
    suspects = set(found[1:][found[1:] == found[:-1]].tolist())
    if not suspects:
        return ""
    seen: set[str] = set()
    doubled: dict[str, None] = {}  # in the order in which they come
    for text in ids():
        if hash(text) in suspects:
            if text in seen:
                doubled[text] = None
            seen.add(text)
    return _problem(len(doubled), "more than once", itertools.islice(doubled, _EXAMPLES))


def _problem(count: int, what: str, examples: Iterable[str]) -> str:
    if not count:
        return ""
    more = ", ..." if count > _EXAMPLES else ""
    return f"\n  {count} {what}: {', '.join(map(repr, examples))}{more}"
