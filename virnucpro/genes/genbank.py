"""GenBank flat files as a stream of records: one for each CDS, in the order of the file.

A file is cut into its entries here, and each entry's parts are found by their keywords, so that a
LOCUS line without room for its name, or an end without "//", harms nothing else. Biopython reads
the table of features; `virnucpro.genes.cds` makes a record of each CDS.
"""

from __future__ import annotations

import io
import logging
import re
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from Bio import SeqIO
from Bio.Seq import Seq
from Bio.SeqFeature import SeqFeature

from virnucpro.errors import InputError
from virnucpro.genes.cds import Contig, record_of
from virnucpro.sequences.fasta import Record

__all__ = ["is_genbank", "parse_genbank"]

logger = logging.getLogger(__name__)

_LOCUS = re.compile(rb"^LOCUS[ \t]", re.MULTILINE)
_END = re.compile(rb"^//[ \t\r]*\n", re.MULTILINE)
_LONGEST_END = 80  # bytes in which a "//" with white space behind it is recognised
_KEYWORD = re.compile(rb"^([A-Z]+|//).*\n?", re.MULTILINE)
_FEATURE = re.compile(rb"^     (?=\S)", re.MULTILINE)
_CDS = re.compile(rb"^     CDS(?=\s)", re.MULTILINE)
_NAME = re.compile(r"^(?:VERSION|ACCESSION)[ \t]+(\S+)", re.MULTILINE)
_SIZE = re.compile(r"(\d+)\s+(bp|aa|rc)\b")
_NO_LETTERS = b"0123456789 \t\r\n/"
_SHOWN = 10  # names of a list in the log


def is_genbank(start: bytes) -> bool:
    """Whether a file that begins so is a GenBank flat file; releases have a title before LOCUS."""
    return not start.lstrip().startswith(b">") and _LOCUS.search(start) is not None


def parse_genbank(
    blocks: Iterable[bytes], path: str, *, max_record_residues: int | None = None
) -> Iterator[Record]:
    """Read each CDS of a GenBank file, in memory of one entry.

    Its id is the contig's (VERSION, else ACCESSION, else the name on the LOCUS line), "_" and its
    number there; its description has protein_id and product. A CDS that cannot be used carries the
    reason in its findings.

    Args:
        blocks: the file's bytes, cut anywhere.
        path: its name, for records and messages.
        max_record_residues: residues of a record that are kept.

    Yields:
        The records, with their genes.

    Raises:
        InputError: the file ends inside an entry, or an entry is of a protein; the line is named.
    """
    differing: list[str] = []
    for line, text, is_whole in _entries(blocks):
        entry = _read_entry(text, path, line, is_whole=is_whole)
        for number, (place, feature) in enumerate(entry.features, 1):
            record = record_of(feature, entry.contig, number, path=path, line=place)
            if record.gene is not None and record.gene.translation == "differs":
                differing.append(f"{record.id} (line {record.line})")
            yield _limited(record, max_record_residues)
    if differing:
        more = ", ..." if len(differing) > _SHOWN else ""
        logger.warning(
            "%s: the /translation of %d CDS is not that of the nucleotides, and was taken: %s%s",
            *(path, len(differing), ", ".join(differing[:_SHOWN]), more),
        )


PlacedFeature = tuple[int, SeqFeature]  # with its line


@dataclass(frozen=True)
class _Entry:
    """One entry: from LOCUS to "//"."""

    contig: Contig
    features: list[PlacedFeature]  # each CDS


def _entries(blocks: Iterable[bytes]) -> Iterator[tuple[int, bytes, bool]]:
    """Cut a file at "//"; yield each entry's first line, its text, and whether it had an end."""
    pending, line = bytearray(), 1
    for block in blocks:
        start = max(0, len(pending) - _LONGEST_END)
        pending += block
        while end := _END.search(pending, start):
            yield from _from_locus(bytes(pending[: end.end()]), line, is_whole=True)
            line += pending.count(b"\n", 0, end.end())
            del pending[: end.end()]
            start = 0
    is_whole = pending.rstrip().endswith(b"\n//")
    yield from _from_locus(bytes(pending), line, is_whole=is_whole)


def _from_locus(text: bytes, line: int, *, is_whole: bool) -> Iterator[tuple[int, bytes, bool]]:
    """Skip what stands before LOCUS: blank lines, or a release's title."""
    if found := _LOCUS.search(text):
        line += text.count(b"\n", 0, found.start())
        yield line, text[found.start() :].replace(b"\r\n", b"\n"), is_whole


def _read_entry(text: bytes, path: str, line: int, *, is_whole: bool) -> _Entry:
    keywords = list(_KEYWORD.finditer(text))
    ends = [each.start() for each in keywords[1:]] + [len(text)]
    parts = {each[1]: (each.end(), end) for each, end in zip(keywords, ends, strict=True)}
    first = (parts[name][0] for name in (b"FEATURES", b"ORIGIN") if name in parts)
    head = text[: next(first, len(text))].decode("utf-8", "replace")
    letters = b""
    if b"ORIGIN" in parts:
        letters = text[slice(*parts[b"ORIGIN"])].translate(None, _NO_LETTERS).upper()
    locus = head.partition("\n")[0]
    size = _SIZE.search(locus)
    if size and size[2] == "aa":
        raise InputError(
            "is an entry of a protein, not of a genome",
            path=path,
            line=line,
            hint="download the proteins as FASTA, and give them as input_type: protein",
        )
    if not is_whole:
        _check_end(letters, size, head, path, line)
    name = _name_of(head, locus, size, len(letters))
    length = len(letters) or int(size[1] if size else 0)
    topology = "circular" if " circular " in locus else "linear"
    own = f"LOCUS       {'entry':<16} {length:>11} bp    DNA     {topology:<8} UNK 01-JAN-1980\n"
    _check_table(text, parts.get(b"FEATURES", (0, 0)), path, line)
    features = _cds_of(text, parts.get(b"FEATURES", (0, 0)), line, own)
    return _Entry(Contig(name, Seq(letters)), features)


def _check_end(letters: bytes, size: re.Match[str] | None, head: str, path: str, line: int) -> None:
    """Refuse an entry without its "//", unless all bases that LOCUS tells are there."""
    # A name that ran into the number makes that longer.
    if letters and size and size[1].endswith(str(len(letters))):
        logger.warning("%s, line %d: the last entry ends without '//'", path, line)
        return
    name = [*head.split(), "", ""][1]
    raise InputError(
        f"the file ends inside the entry {name}, which has no '//'",
        path=path,
        line=line,
        hint="the file is not complete: copy or download it again",
    )


def _check_table(text: bytes, table: tuple[int, int], path: str, line: int) -> None:
    """Refuse an entry with a CDS outside its table of features: a line of it was lost."""
    for found in _CDS.finditer(text):
        if not table[0] <= found.start() < table[1]:
            raise InputError(
                "has a CDS that is not in a table of features, below a line 'FEATURES'",
                path=path,
                line=line + text.count(b"\n", 0, found.start()),
                hint="the file is damaged: copy or download it again",
            )


def _name_of(head: str, locus: str, size: re.Match[str] | None, bases: int) -> str:
    """Return a contig's id, also where its name ran into its length on the LOCUS line."""
    for keyword in ("VERSION", "ACCESSION"):
        for found in _NAME.finditer(head):
            if found[0].startswith(keyword) and found[1] != ".":
                return found[1]
    word = [*locus.split(), ""][1]
    if size and size.start(1) < locus.find(word) + len(word):
        word = word.removesuffix(str(bases)) if bases else word
    return word


def _cds_of(text: bytes, table: tuple[int, int], line: int, locus: str) -> list[PlacedFeature]:
    """Read the CDS features of an entry, each with its line.

    Args:
        text: the entry.
        table: where in it the table of features is.
        line: the entry's first.
        locus: its LOCUS line, in a form that Biopython can read.
    """
    starts = [found.start() for found in _FEATURE.finditer(text, *table)]
    places, parts, last = [], [], 0
    for start, end in zip(starts, [*starts, table[1]][1:], strict=True):
        if _CDS.match(text, start):
            line, last = line + text.count(b"\n", last, start), start
            places.append(line)
            parts.append(text[start:end].decode("utf-8", "replace").rstrip() + "\n")
    features = _parse(parts, locus)
    if features is None:  # one of them cannot be read: each alone, that the others can
        alone = [_parse([part], locus) for part in parts]
        features = [found[0] if found else SeqFeature(None, "CDS") for found in alone]
    return list(zip(places, features, strict=True))


def _parse(parts: list[str], locus: str) -> list[SeqFeature] | None:
    """Read features with Biopython; None where it fails, or does not find each of them."""
    entry = f"{locus}FEATURES             Location/Qualifiers\n{''.join(parts)}ORIGIN\n//\n"
    try:
        with warnings.catch_warnings():
            # What it warns of, a location that it cannot read, is named by the CDS.
            warnings.simplefilter("ignore")
            features: list[SeqFeature] = SeqIO.read(io.StringIO(entry), "genbank").features
    except (ValueError, AssertionError, LookupError, TypeError, AttributeError):
        return None
    return features if len(features) == len(parts) else None


def _limited(record: Record, limit: int | None) -> Record:
    """Keep so many residues of a record, and count the others."""
    excess = 0 if limit is None else len(record.residues) - limit
    if excess <= 0:
        return record
    findings = record.findings._replace(excess=excess)
    return record._replace(residues=record.residues[:limit], findings=findings)
