"""Refuses nucleotides where proteins are expected, before time is spent on them.

Letters of nucleotides are letters of amino acids too, so a genome would pass every other check and
give embeddings without meaning.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from virnucpro.errors import InputError
from virnucpro.sequences.alphabet import RESIDUES
from virnucpro.sequences.fasta import Record

__all__ = ["Letters", "are_nucleotides", "count_letters", "refuse_nucleotides"]

_SHARE = 0.95
_RECORDS = 1_000
_LETTERS = 1_000_000
_FEWEST_LETTERS = 50
_NUCLEOTIDES = b"ACGTUNacgtun"
_AMINO_ACIDS = (RESIDUES + "J").encode() + (RESIDUES + "J").lower().encode()


def are_nucleotides(residues: bytes) -> bool:
    """Whether a record is nucleotides: 95% of 50 letters or more, and all four of them.

    Args:
        residues: of one record.
    """
    if len(residues) < _FEWEST_LETTERS:
        return False
    letters = _count(residues, _AMINO_ACIDS)
    if letters < _FEWEST_LETTERS or _count(residues, _NUCLEOTIDES) < _SHARE * letters:
        return False
    kinds = (b"Aa", b"Cc", b"Gg", b"TUtu")
    return all(_count(residues, kind) for kind in kinds)


@dataclass
class Letters:
    """The letters of the first records of a file, which decide whether they are nucleotides."""

    records: int = 0
    letters: int = 0  # of amino acids, to which those of nucleotides belong
    nucleotides: int = 0  # A, C, G, T, U and N

    def add(self, record: Record) -> None:
        """Count a record's letters."""
        self.records += 1
        self.letters += _count(record.residues, _AMINO_ACIDS)
        self.nucleotides += _count(record.residues, _NUCLEOTIDES)

    @property
    def are_enough(self) -> bool:
        """Whether there are enough of them: 50."""
        return self.letters >= _FEWEST_LETTERS

    @property
    def are_nucleotides(self) -> bool:
        """Whether there are enough of them, and at least 95% are A, C, G, T, U or N."""
        return self.are_enough and self.nucleotides >= _SHARE * self.letters

    @property
    def suffice(self) -> bool:
        """Whether later records need not be looked at: after 1,000, or a million letters."""
        return self.records >= _RECORDS or self.letters >= _LETTERS


def count_letters(records: Iterable[Record]) -> Letters:
    """Count the letters of a file's first records, until they suffice.

    Raises:
        InputError: see the reader of the records.
    """
    found = Letters()
    for record in records:
        found.add(record)
        if found.suffice:
            break
    return found


def refuse_nucleotides(records: Iterable[Record]) -> Iterator[Record]:
    """Pass the records of one file on, unless they look like nucleotides.

    It is decided once, by `Letters`, as soon as the letters suffice or at the end.

    Args:
        records: the records of one file, in order.

    Yields:
        The same records.

    Raises:
        InputError: they look like nucleotides; it names the first record's line.
    """
    stream = iter(records)
    first: Record | None = None
    found = Letters()
    for record in stream:
        first = first or record
        found.add(record)
        yield record
        if found.suffice:
            break
    if first is not None and found.are_nucleotides:
        raise InputError(
            f"looks like nucleotides: {found.nucleotides / found.letters:.1%} of the first "
            f"{found.letters:,} letters are A, C, G, T, U or N, and proteins are expected",
            path=first.path,
            line=first.line,
            hint="set input_type: contigs (--input-type contigs), which finds the genes first, or "
            "input_type: any (--input-type any) if these letters are residues",
        )
    yield from stream


def _count(residues: bytes, letters: bytes) -> int:
    return len(residues) - len(residues.translate(None, letters))
