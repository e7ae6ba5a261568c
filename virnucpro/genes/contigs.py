"""Contigs of a FASTA file, brought to the letters that genes are found in, each with a status."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from virnucpro.sequences.compression import Digest
from virnucpro.sequences.fasta import Record, read_fasta

__all__ = ["CHANGES", "CONTIGS_SCHEMA", "STATUSES", "Contig", "read_contigs"]

STATUSES = ("ok", "no_genes", "too_long", "invalid_letters", "empty")
"""What becomes of a contig; genes are looked for in those of the first two."""

CHANGES = ("upper_case", "u_to_t", "gap_removed", "ambiguous")
"""What is counted of the contigs, in letters; IUPAC's letters for several bases stay."""

CONTIGS_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("line", pa.int64()),
        ("length", pa.int64()),
        ("gc", pa.float64()),  # of the bases that are A, C, G or T; null where there are none
        ("n_fraction", pa.float64()),  # of all bases; null where there are none
        ("genes", pa.int32()),
        ("partial", pa.int32()),  # genes that go on beyond the contig
        ("coding_fraction", pa.float64()),  # bases in at least one gene; null without bases
        ("genetic_code", pa.int16()),  # 0 without genes
        ("status", pa.string()),
    ]
)
"""The columns of a table of contigs."""

_IUPAC = b"ACGTRYSWKMBDHVN"
_LOWER_CASE = b"abcdefghijklmnopqrstuvwxyz"
_GAPS = b"-."
_TO_BASES = bytes.maketrans(b"U", b"T")


@dataclass(frozen=True)
class Contig:
    """A contig as it is looked at."""

    id: str
    line: int  # of its header
    length: int  # bases, without gaps; letters of the file where it is too long
    bases: bytes  # upper case, U as T; empty unless genes are to be found
    status: str  # one of `STATUSES`; "ok" while genes are to be found
    gc: float | None  # of the bases that are A, C, G or T
    n_fraction: float | None  # of all bases
    changes: tuple[int, ...]  # letters, in the order of `CHANGES`


def read_contigs(
    path: Path, *, max_contig_bases: int, digest: Digest | None = None
) -> Iterator[Contig]:
    """Read the contigs of a FASTA file in its order; none is left out.

    Args:
        path: plain or compressed.
        max_contig_bases: longer ones are too long.
        digest: takes the raw bytes of the file as they pass.

    Raises:
        InputError: the file is not FASTA, see `read_fasta`.
    """
    for record in read_fasta(path, max_record_residues=max_contig_bases, digest=digest):
        yield _contig(record)


def _contig(record: Record) -> Contig:
    """Bring a record to bases, and say what is wrong with it."""
    letters = record.residues.upper().translate(None, _GAPS)
    bases = letters.translate(_TO_BASES)
    status = _status(record, bases)
    if status != "ok":
        nothing = (0,) * len(CHANGES)
        length = record.length if status == "too_long" else len(bases)
        return Contig(record.id, record.line, length, b"", status, None, None, nothing)
    known = {letter: bases.count(letter) for letter in (b"A", b"C", b"G", b"T")}
    plain = sum(known.values())
    changes = (
        len(record.residues) - len(record.residues.translate(None, _LOWER_CASE)),
        letters.count(b"U"),
        len(record.residues) - len(bases),
        len(bases) - plain,
    )
    gc = (known[b"C"] + known[b"G"]) / plain if plain else None
    n_fraction = bases.count(b"N") / len(bases)
    return Contig(record.id, record.line, len(bases), bases, status, gc, n_fraction, changes)


def _status(record: Record, bases: bytes) -> str:
    if record.findings.text_line:
        return "invalid_letters"
    if record.findings.excess:
        return "too_long"
    if not bases:
        return "empty"
    return "invalid_letters" if bases.translate(None, _IUPAC) else "ok"
