"""Ids that occur more than once in a sample: found, refused or renamed, in little memory.

Only a 64-bit hash of each id is kept. Hashes that occur twice make suspects, and suspects are
compared by their ids, a bounded number of them at a time.
"""

from __future__ import annotations

import logging
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from virnucpro.errors import InputError
from virnucpro.formats import LIMITED_IDS
from virnucpro.sequences.spool import RecordSpool, hash_id

__all__ = [
    "Renames",
    "refuse_duplicates",
    "refuse_ids",
    "refuse_scattered",
    "rename_duplicates",
]

logger = logging.getLogger(__name__)

_SUSPECTS_AT_ONCE = 1 << 17


class _Suspect(NamedTuple):
    """A record whose id's hash occurs more than once."""

    row: int
    id: str
    description: str
    file: int
    line: int


@dataclass(frozen=True)
class Renames:
    """New ids of the second and later records of an id.

    Attributes:
        rows: [n] int64, increasing numbers of the records in the input.
        numbers: [n] int64, what is appended to the id, after a "_".
    """

    rows: npt.NDArray[np.int64]
    numbers: npt.NDArray[np.int64]

    @classmethod
    def none(cls) -> Renames:
        """No record is renamed."""
        return cls(np.empty(0, np.int64), np.empty(0, np.int64))

    def __len__(self) -> int:
        """Number of renamed records."""
        return len(self.rows)

    def apply(self, ids: pa.Array, first_row: int) -> pa.Array:
        """Return the ids of a block of records after renaming.

        Args:
            ids: the block's ids.
            first_row: number of the block's first record in the input.
        """
        start, stop = np.searchsorted(self.rows, [first_row, first_row + len(ids)])
        if start == stop:
            return ids
        renamed = ids.to_pylist()
        for row, number in zip(self.rows[start:stop], self.numbers[start:stop], strict=True):
            renamed[row - first_row] += f"_{number}"
        return pa.array(renamed, ids.type)


def refuse_duplicates(spool: RecordSpool, files: Sequence[str]) -> None:
    """Raise where an id occurs twice; sorts the spool's hashes in place.

    Args:
        spool: the closed spool of all records.
        files: names of the input files.

    Raises:
        InputError: an id occurs twice; both places are named.
    """
    for repeated in _repeated_hashes(spool):
        seen: dict[str, _Suspect] = {}
        for suspect in _suspects(spool, repeated):
            first = seen.setdefault(suspect.id, suspect)
            if first is not suspect:
                raise _duplicate(suspect, first, files)


def _duplicate(suspect: _Suspect, first: _Suspect, files: Sequence[str]) -> InputError:
    hint = (
        "make the ids unique, or set duplicate_ids: suffix "
        "(--duplicate-ids suffix) to have later ones renamed id_2, id_3, ..."
    )
    if suspect.description != first.description:
        hint += (
            "; an id ends at the first white space, and behind it these headers differ: ids: "
            "whole_header (--ids whole_header) takes all of a header as the id"
        )
    return InputError(
        f"id {suspect.id!r} was used before, in {files[first.file]}, line {first.line}",
        path=files[suspect.file],
        line=suspect.line,
        hint=hint,
    )


def refuse_scattered(spool: RecordSpool, files: Sequence[str]) -> None:
    """Raise where the genes of a contig are not side by side, in the order of their numbers.

    Args:
        spool: the closed spool of all records, which carry genes.
        files: names of the input files.

    Raises:
        InputError: a contig comes again; both places are named.
    """
    begun = array("q", (hash((file, contig)) for contig, file, _ in _contigs(spool)))
    hashes = np.sort(np.frombuffer(begun, np.int64))
    suspects = set(hashes[1:][hashes[1:] == hashes[:-1]].tolist())
    seen: dict[tuple[int, str], int] = {}  # of suspects only, with their lines
    for contig, file, line in _contigs(spool) if suspects else ():
        if hash((file, contig)) not in suspects:
            continue
        first = seen.setdefault((file, contig), line)
        if first != line:
            raise InputError(
                f"the genes of contig {contig!r} are not side by side in the order of their "
                f"numbers: others are from line {first} on",
                path=files[file],
                line=line,
                hint="sort the file, or set duplicate_ids: suffix (--duplicate-ids suffix) where "
                "these are different contigs of one name",
            )


def _contigs(spool: RecordSpool) -> Iterator[tuple[str, int, int]]:
    """Return each contig's id, file and line where its genes begin, or go on after others."""
    last: tuple[int, str, int] = (-1, "", 0)
    for batch in spool.batches(["contig", "gene", "file", "line"]):
        columns = [batch.column(name).to_pylist() for name in ("file", "contig", "gene", "line")]
        for file, contig, gene, line in zip(*columns, strict=True):
            if (file, contig) != last[:2] or gene <= last[2]:
                yield contig, file, line
            last = (file, contig, gene)


def refuse_ids(spool: RecordSpool, files: Sequence[str], export: str) -> None:
    """Raise where an export cannot have the id of an accepted record.

    Args:
        spool: the closed spool of all records.
        files: names of the input files.
        export: one of `virnucpro.formats.LIMITED_IDS`; others take every id.

    Raises:
        InputError: it cannot; the first such record is named.
    """
    if export not in LIMITED_IDS:
        return
    for batch in spool.batches(["id", "file", "line", "reason"]):
        for row, text in enumerate(batch.column("id").to_pylist()):
            if LIMITED_IDS[export](text) or batch.column("reason")[row].as_py():
                continue
            raise InputError(
                f"the export {export} cannot have the id {text!r}",
                path=files[batch.column("file")[row].as_py()],
                line=batch.column("line")[row].as_py(),
                hint=f"leave out the export {export}, or rename this record",
            )


def rename_duplicates(spool: RecordSpool, files: Sequence[str]) -> Renames:
    """Find new ids for the second and later records of an id; sorts the spool's hashes in place.

    The n-th record of ``id`` becomes ``id_n``; numbers that would give an id of the input are left
    out. Two renamed records cannot meet: equal new ids have equal numbers and so equal old ids.

    Args:
        spool: the closed spool of all records.
        files: names of the input files.
    """
    rows, numbers = array("q"), array("q")
    for repeated in _repeated_hashes(spool):
        last: dict[str, int] = {}
        for suspect in _suspects(spool, repeated):
            if suspect.id not in last:
                last[suspect.id] = 1
                continue
            number = last[suspect.id] + 1
            # An id that only shares its hash with one of the input is left out too: no harm.
            while _contains(spool.id_hashes, f"{suspect.id}_{number}"):
                number += 1
            last[suspect.id] = number
            if not rows:
                place = f"{files[suspect.file]}, line {suspect.line}"
                logger.warning("%s: id %r is taken: _%d is added", place, suspect.id, number)
            rows.append(suspect.row)
            numbers.append(number)
    order = np.argsort(np.array(rows, np.int64))
    return Renames(np.array(rows, np.int64)[order], np.array(numbers, np.int64)[order])


def _repeated_hashes(spool: RecordSpool) -> Iterator[npt.NDArray[np.int64]]:
    """Return the hashes that occur more than once, increasing, in portions."""
    hashes = spool.id_hashes
    hashes.sort()
    repeated = np.unique(hashes[1:][hashes[1:] == hashes[:-1]])
    for start in range(0, len(repeated), _SUSPECTS_AT_ONCE):
        yield repeated[start : start + _SUSPECTS_AT_ONCE]


def _suspects(spool: RecordSpool, repeated: npt.NDArray[np.int64]) -> Iterator[_Suspect]:
    """Return the records with these hashes, in input order."""
    first_row = 0
    for batch in spool.batches(["id", "description", "file", "line", "id_hash"]):
        hashes = batch.column("id_hash").to_numpy()
        places = np.minimum(np.searchsorted(repeated, hashes), len(repeated) - 1)
        for index in np.flatnonzero(repeated[places] == hashes).tolist():
            yield _Suspect(
                first_row + index,
                batch.column("id")[index].as_py(),
                batch.column("description")[index].as_py(),
                batch.column("file")[index].as_py(),
                batch.column("line")[index].as_py(),
            )
        first_row += len(batch)


def _contains(hashes: npt.NDArray[np.int64], identifier: str) -> bool:
    """Whether an id's hash is among the sorted hashes."""
    target = hash_id(identifier)
    place = int(np.searchsorted(hashes, target))
    return place < len(hashes) and bool(hashes[place] == target)
