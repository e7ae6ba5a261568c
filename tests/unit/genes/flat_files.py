"""GenBank entries written line by line, and CDS read from nucleotides without a library."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

_BASES = "TCAG"
_CODES = {
    1: "FFLLSSSSYY**CC*WLLLLPPPPHHQQRRRRIIIMTTTTNNKKSSRRVVVVAAAADDEEGGGG",
    4: "FFLLSSSSYY**CCWWLLLLPPPPHHQQRRRRIIIMTTTTNNKKSSRRVVVVAAAADDEEGGGG",
    11: "FFLLSSSSYY**CC*WLLLLPPPPHHQQRRRRIIIMTTTTNNKKSSRRVVVVAAAADDEEGGGG",
}
TABLES = {
    number: dict(zip(map("".join, itertools.product(_BASES, repeat=3)), letters, strict=True))
    for number, letters in _CODES.items()
}
_OTHER = dict(zip("ACGT", "TGCA", strict=True))

Part = tuple[int, int, int]  # first and last base, from 1, and strand


def read_bases(bases: str, parts: Sequence[Part]) -> str:
    """Read parts of a contig base by base, in the order in which they are translated."""
    found = []
    for first, last, strand in parts:
        positions = range(first, last + 1) if strand > 0 else range(last, first - 1, -1)
        letters = [bases[position - 1] for position in positions]
        found += letters if strand > 0 else [_OTHER[letter] for letter in letters]
    return "".join(found)


def read_protein(bases: str, parts: Sequence[Part], *, code: int = 1, frame: int = 1) -> str:
    """Translate parts of a contig codon by codon; the stop at the end is left out."""
    coding = read_bases(bases, parts)[frame - 1 :]
    codons = [coding[i : i + 3] for i in range(0, len(coding) - 2, 3)]
    return "".join(TABLES[code][codon] for codon in codons).removesuffix("*")


def location(parts: Sequence[Part], *, left: bool = False, right: bool = False) -> str:
    """Write parts of one strand as a location; `left` and `right`: an end lies further out."""
    along = parts if parts[0][2] > 0 else parts[::-1]
    ends = [[str(first), str(last)] for first, last, _ in along]
    ends[0][0] = "<" * left + ends[0][0]
    ends[-1][1] = ">" * right + ends[-1][1]
    texts = ["..".join(each) for each in ends]
    text = f"join({','.join(texts)})" if len(texts) > 1 else texts[0]
    return text if parts[0][2] > 0 else f"complement({text})"


def cds(place: str, *qualifiers: str) -> str:
    """Write a CDS; qualifiers as ``name=value``, values as they are to stand."""
    lines = [f"     CDS             {place}"]
    for text in qualifiers:
        rest = f"/{text}"
        lines += [f"{'':21}{rest[start : start + 58]}" for start in range(0, len(rest), 58)]
    return "\n".join(lines) + "\n"


def entry(
    bases: str,
    *features: str,
    name: str = "c",
    version: str | None = None,
    locus: str | None = None,
    topology: str = "linear",
    origin: bool = True,
    end: str = "//\n",
) -> str:
    """Write an entry; `locus` in place of a LOCUS line that is well formed."""
    written = locus or f"{name:<16} {len(bases):>11} bp    DNA     {topology:<8} PHG 01-JAN-2000"
    rows = [
        f"{start + 1:>9} " + " ".join(bases[i : i + 10] for i in range(start, start + 60, 10))
        for start in range(0, len(bases), 60)
    ]
    sequence = "\n".join(["ORIGIN", *(row.rstrip().lower() for row in rows)]) + "\n"
    return (
        f"LOCUS       {written}\nDEFINITION  .\n"
        + (f"ACCESSION   {version.partition('.')[0]}\nVERSION     {version}\n" if version else "")
        + f"FEATURES             Location/Qualifiers\n     source          1..{len(bases)}\n"
        + f'{"":21}/organism="a phage"\n'
        + "".join(features)
        + (sequence if origin else "")
        + end
    )
