"""Refuses nucleotides where proteins are expected, before time is spent on them.

Letters of nucleotides are letters of amino acids too, so a genome would pass every other check and
give embeddings without meaning.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from virnucpro.errors import InputError
from virnucpro.sequences.alphabet import RESIDUES
from virnucpro.sequences.fasta import Record

__all__ = ["are_nucleotides", "refuse_nucleotides"]

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


def refuse_nucleotides(records: Iterable[Record]) -> Iterator[Record]:
    """Pass the records of one file on, unless they look like nucleotides.

    It is decided once, after 1,000 records or a million letters or at the end: nucleotides are
    where at least 95% of the letters, of at least 50, are A, C, G, T, U or N.

    Args:
        records: the records of one file, in order.

    Yields:
        The same records.

    Raises:
        InputError: they look like nucleotides; it names the first record's line.
    """
    stream = iter(records)
    first: Record | None = None
    letters = nucleotides = 0
    for count, record in enumerate(stream, 1):
        first = first or record
        letters += _count(record.residues, _AMINO_ACIDS)
        nucleotides += _count(record.residues, _NUCLEOTIDES)
        yield record
        if count >= _RECORDS or letters >= _LETTERS:
            break
    if first is not None and letters >= _FEWEST_LETTERS and nucleotides >= _SHARE * letters:
        raise InputError(
            f"looks like nucleotides: {nucleotides / letters:.1%} of the first {letters:,} letters "
            "are A, C, G, T, U or N, and proteins are expected",
            path=first.path,
            line=first.line,
            hint="set input_type: contigs, with which the genes are found first, or "
            "input_type: any (--input-type any) if these letters are meant as they are",
        )
    yield from stream


def _count(residues: bytes, letters: bytes) -> int:
    return len(residues) - len(residues.translate(None, letters))
