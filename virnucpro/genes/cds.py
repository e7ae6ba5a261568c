"""A CDS of a GenBank file as a record: its coordinates, and its protein.

The protein is the ``/translation`` where there is one, else the nucleotides' own, by the table that
``/transl_table`` names (1 where it is missing, as INSDC has it). Where both are there they are
compared, unless the entry says that they differ (``/exception``).
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import Any

from Bio.Data.CodonTable import CodonTable, TranslationError, unambiguous_dna_by_id
from Bio.Data.IUPACData import protein_letters_3to1_extended
from Bio.Seq import Seq, translate
from Bio.SeqFeature import AfterPosition, BeforePosition, SeqFeature, UnknownPosition

from virnucpro.quarantine import Reason
from virnucpro.sequences.gene import Gene
from virnucpro.sequences.record import NO_FINDINGS, Findings, Record

__all__ = ["Contig", "record_of"]

_EXCEPT = re.compile(r"pos:\D*(\d+).*?,\s*aa:\s*(\w+)", re.DOTALL)
_LETTERS = protein_letters_3to1_extended | {"TERM": "*", "OTHER": "X"}
_OPEN = frozenset("XBZJ")  # letters that stand for several residues


@dataclass(frozen=True)
class Contig:
    """The nucleotides that features are on."""

    id: str
    bases: Seq  # upper case; empty where the entry has none


class _RefusedError(Exception):
    """Why a CDS cannot be translated: reason and detail."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail


def record_of(feature: SeqFeature, contig: Contig, number: int, *, path: str, line: int) -> Record:
    """Make the record of a CDS.

    Args:
        feature: the CDS.
        contig: what it is on.
        number: of the CDS on its contig, from 1.
        path: the file.
        line: where the CDS begins.

    Returns:
        The record with its gene; where it cannot be embedded, without residues, and with a reason
        in its findings: ``pseudo``, ``location``, ``no_sequence``, ``genetic_code``,
        ``codon_start``, ``invalid_letters`` or ``empty``.
    """
    findings, residues, translation = NO_FINDINGS, "", ""
    try:
        residues, translation = _protein(feature, contig)
    except _RefusedError as error:
        findings = Findings(reason=error.reason, detail=error.detail)
    product, tag = _text(feature, "product"), _text(feature, "locus_tag")
    start, end, strand, partial = _place(feature, len(contig.bases))
    gene = Gene(
        *(contig.id, number, start, end, strand, partial, _table_number(feature) or 0),
        *(product, tag, translation),
    )
    name = f"{contig.id}_{number}"
    description = f"{_text(feature, 'protein_id')} {product}".strip()
    return Record(name, description, residues.encode(), path, line, findings, gene)


def _text(feature: SeqFeature, name: str) -> str:
    """Return a qualifier's first value, white space in one piece; empty where there is none."""
    return " ".join((feature.qualifiers.get(name) or [""])[0].split())


def _table_number(feature: SeqFeature) -> int | None:
    """Return the number of the translation table; None where what stands there is no number."""
    text = _text(feature, "transl_table") or "1"
    return int(text) if text.isdecimal() and len(text) < 4 else None


# ---- coordinates ---------------------------------------------------------------------------------


def _place(feature: SeqFeature, size: int) -> tuple[int, int, int, str]:
    """Return start, end, strand and partial of a CDS; zeros where its location cannot be read."""
    if feature.location is None:
        return 0, 0, 1, "00"
    parts = [part for part in feature.location.parts if part.ref is None] or feature.location.parts
    strand = parts[0].strand or 1
    along = parts if strand > 0 else parts[::-1]
    cut = _origin(along, size)
    # Those before the origin, and those behind it; without it, all are both.
    left, right = (along[:cut], along[cut:]) if cut else (along, along)
    first = min(left, key=lambda part: int(part.start)).start
    last = max(right, key=lambda part: int(part.end)).end
    partial = f"{isinstance(first, BeforePosition):d}{isinstance(last, AfterPosition):d}"
    return int(first) + 1, int(last), strand, partial


def _origin(parts: list[Any], size: int) -> int:
    """Return the number of parts before the origin, for parts along the contig; 0 without it."""
    for index in range(1, len(parts)):
        if int(parts[index - 1].end) == size and int(parts[index].start) == 0:
            return index
    return 0


# ---- the protein ---------------------------------------------------------------------------------


def _protein(feature: SeqFeature, contig: Contig) -> tuple[str, str]:
    """Return the residues of a CDS, and where they are from.

    Raises:
        _RefusedError: there are none.
    """
    qualifiers = feature.qualifiers
    if "pseudo" in qualifiers or "pseudogene" in qualifiers:
        raise _RefusedError(Reason.PSEUDO, "the file calls it a pseudogene")
    given = "".join((qualifiers.get("translation") or [""])[0].split()).upper()
    try:
        made = _translated(feature, contig)
    except _RefusedError:
        if not given:
            raise
        return given, "given"
    if not given and not made[0]:
        raise _RefusedError(Reason.EMPTY, f"no codon but a stop at {feature.location}")
    if not given:
        return made[0], "made"
    if "exception" in qualifiers or any(_agree(given, each) for each in made):
        return given, "given"
    return given, "differs"


def _agree(given: str, made: str) -> bool:
    """Whether two translations are the same, but for residues that one of them leaves open."""
    given = given.rstrip("*")
    if given == made or len(given) != len(made):
        return given == made
    pairs = zip(given, made, strict=True)
    return all(left == right or left == "X" or right in _OPEN for left, right in pairs)


def _translated(feature: SeqFeature, contig: Contig) -> list[str]:
    """Translate a CDS.

    Returns:
        The translation, and what else would be right: with another first residue (a file may have
        the start codon's own one in place of M), or without the last one, of which two bases are
        there.

    Raises:
        _RefusedError: it cannot be translated.
    """
    bases = _bases(feature, contig)
    number = _table_number(feature)
    table = unambiguous_dna_by_id.get(number)
    if table is None:
        name = _text(feature, "transl_table")
        raise _RefusedError(Reason.GENETIC_CODE, f"Biopython has no translation table {name!r}")
    frame = _text(feature, "codon_start") or "1"
    if frame not in ("1", "2", "3"):
        raise _RefusedError(Reason.CODON_START, f"codon_start is {frame!r}, not 1, 2 or 3")
    coding = bases[int(frame) - 1 :]
    whole = _read_codons(coding + "N" * (-len(coding) % 3), table)
    if len(coding) % 3 == 0 and coding[-3:] in table.stop_codons:
        whole = whole[:-1] + "*"  # in some tables a stop inside a gene is a residue
    whole = _with_exceptions(whole, feature, int(frame))
    if len(coding) % 3:
        whole = whole.removesuffix("X")
    plain = [whole]
    if frame == "1" and not _lacks_start(feature) and coding[:3] in table.start_codons:
        plain = [f"M{whole[1:]}", whole]
    found = [each.removesuffix("*") for each in plain]
    return found + ([found[0][:-1]] if len(coding) % 3 else [])


def _read_codons(coding: str, table: CodonTable) -> str:
    """Translate whole codons, stops as ``*``."""
    codons = _codons(table)
    try:
        return "".join([codons[coding[i : i + 3]] for i in range(0, len(coding), 3)])
    except KeyError:  # letters that stand for several bases: Biopython knows what follows
        pass
    try:
        return str(translate(coding, table=table.id))
    except TranslationError as error:
        raise _RefusedError(Reason.INVALID_LETTERS, str(error)) from error


@functools.cache
def _codons(table: CodonTable) -> dict[str, str]:
    """Return the residue of each of the 64 codons."""
    return {**dict.fromkeys(table.stop_codons, "*"), **table.forward_table}


def _bases(feature: SeqFeature, contig: Contig) -> str:
    """Cut the coding nucleotides out of their contig."""
    location = feature.location
    if location is None:
        raise _RefusedError(Reason.LOCATION, "its location cannot be read")
    if any(part.ref for part in location.parts):
        raise _RefusedError(Reason.LOCATION, f"a part of it is in another entry: {location}")
    if not contig.bases:
        raise _RefusedError(
            Reason.NO_SEQUENCE, "the entry has no nucleotides, the CDS no translation"
        )
    ends = [each for part in location.parts for each in (part.start, part.end)]
    if any(isinstance(each, UnknownPosition) for each in ends) or max(ends) > len(contig.bases):
        raise _RefusedError(Reason.LOCATION, f"{location} is not on the {len(contig.bases)} bases")
    # Damaged files have other bytes, which are no letters of a codon.
    return bytes(location.extract(contig.bases)).decode("ascii", "replace")


def _lacks_start(feature: SeqFeature) -> bool:
    """Whether the first codon lies further out than the location goes."""
    part = feature.location.parts[0]
    if (part.strand or 1) > 0:
        return isinstance(part.start, BeforePosition)
    return isinstance(part.end, AfterPosition)


def _with_exceptions(residues: str, feature: SeqFeature, frame: int) -> str:
    """Put in what ``/transl_except`` names: selenocysteine, or a stop that is no codon."""
    letters = list(residues)
    for text in feature.qualifiers.get("transl_except", ()):
        if found := _EXCEPT.search(text):
            codon = (_offset(feature, int(found[1]) - 1) - frame + 1) // 3
            name = found[2].upper() if len(found[2]) > 3 else found[2].capitalize()
            if 0 <= codon < len(letters) and name in _LETTERS:
                letters[codon] = _LETTERS[name]
    return "".join(letters)


def _offset(feature: SeqFeature, position: int) -> int:
    """Return the number of coding bases before a position on the contig; -3 for one outside."""
    before = 0
    for part in feature.location.parts:
        if int(part.start) <= position < int(part.end):
            backwards = (part.strand or 1) < 0
            return before + (int(part.end) - 1 - position if backwards else position - part.start)
        before += len(part)
    return -3
