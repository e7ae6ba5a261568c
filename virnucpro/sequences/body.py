"""The grammar of a FASTA body: what of a line is residues, and what is text, which never is.

A line holds letters, gaps (``-``, ``.``), ``*`` and white space. Dashes and white space of Unicode
count as those of ASCII; any other letter outside ASCII counts as one letter that no model knows,
``?``. White space inside a line separates blocks of equal length, the last of which may be shorter,
as GenBank, EMBL and Clustal print them; the position numbers of such prints, before or after the
blocks, are left out where they count the residues. A line that begins with ``;`` is a comment of
the old FASTA format. Everything else is text, and so are words of different lengths, and short ones
in which upper and lower case are mixed.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["SPACE", "Line", "Positions", "is_header", "read_line"]

SPACE = b" \t\v\f\n"
"""White space of a FASTA file whose line ends are all line feeds."""

UNKNOWN = "?"
"""Stands for a letter outside ASCII."""

_BLOCK = 10  # letters of a printed block; shorter words in mixed case are taken for text
_INVISIBLE = frozenset("\u200b\u200c\u200d\u2060\ufeff\u00ad")
_MINUS = "\u2212"
_TOKEN = re.compile(r"[A-Za-z*.?-]+")
_DATABASE = re.compile(r"[a-z]{2,3}\|[^|\s]+\|?")
_ACCESSION = re.compile(r"(?:[A-Z]{1,4}_?\d{5,}|[OPQ]\d[A-Z0-9]{3}\d|[A-Z]{2}_\d{6,})(?:\.\d+)?")
_FIELDS = re.compile(r"\b(?:OS|OX|GN|PE)=|\[[^\]]+\]\s*$| # \d+ # \d+ # ")


@dataclass(frozen=True, slots=True)
class Line:
    """What a line of a body holds.

    Attributes:
        letters: residues, gaps and stops, in ASCII.
        whitespace: characters of white space between the letters.
        numbers: position numbers that were left out.
        is_comment: whether the line is a comment, and empty otherwise.
        is_text: whether the line is text, and empty otherwise.
    """

    letters: bytes = b""
    whitespace: int = 0
    numbers: int = 0
    is_comment: bool = False
    is_text: bool = False


class Positions:
    """Tells position numbers from others: they count the residues of the record.

    The first may be any number, for a part of a sequence keeps its positions; then a second has to
    agree with it.
    """

    def __init__(self) -> None:
        self.confirmed = True
        self._offsets: set[int] | None = None

    def agree(self, number: int, letters: int, residues: int) -> bool:
        """Whether a number fits.

        Args:
            number: as printed.
            letters: the position that it stands for, from 1, gaps counted.
            residues: the same, gaps not counted.
        """
        offsets = {number - letters, number - residues}
        if self._offsets is None:
            self._offsets = offsets
            self.confirmed = 0 in offsets
            return min(offsets) >= 0 or self.confirmed
        common = offsets & self._offsets
        self.confirmed = self.confirmed or bool(common)
        return bool(common)


def read_line(line: bytes, positions: Positions, letters: int, residues: int) -> Line:
    """Read one line of a body.

    Args:
        line: its bytes, without the line break.
        positions: of the record.
        letters: of the record before this line, gaps counted.
        residues: the same, gaps not counted.

    Returns:
        What it holds.
    """
    text = _plain(line)
    if text.startswith(";"):
        return Line(is_comment=True)
    tokens = text.split()
    if not tokens:
        return Line()
    first = 1 if tokens[0].isdecimal() else 0
    last = len(tokens) - (1 if len(tokens) > first and tokens[-1].isdecimal() else 0)
    blocks = tokens[first:last]
    if all(token.isdecimal() for token in tokens):
        return Line(numbers=len(tokens)) if _is_ruler(tokens) else Line(is_text=True)
    if not all(map(_TOKEN.fullmatch, blocks)) or not _are_blocks(blocks):
        return Line(is_text=True)
    found = "".join(blocks)
    after = letters + len(found), residues + len(found) - found.count("-") - found.count(".")
    numbers = [(tokens[0], (letters + 1, residues + 1))] if first else []
    numbers += [(tokens[-1], after)] if last < len(tokens) else []
    if not all(positions.agree(int(number), *places) for number, places in numbers):
        return Line(is_text=True)
    spaces = sum(map(str.isspace, text.strip()))
    return Line(found.encode(), 0 if numbers else spaces, len(numbers))


def _plain(line: bytes) -> str:
    """Decode a line; what stands for white space, gaps and letters becomes that of ASCII."""
    if line.isascii():
        return line.decode("ascii")
    try:
        text = line.decode()
    except UnicodeDecodeError:
        text = line.decode("cp1252", "replace")
    return "".join(character if character.isascii() else _ascii(character) for character in text)


def _ascii(character: str) -> str:
    """Return the ASCII character that one outside it stands for; itself where it is text."""
    if character.isspace() or character in _INVISIBLE:
        return " "
    if character == _MINUS or unicodedata.category(character) == "Pd":
        return "-"
    return UNKNOWN if character.isalpha() else character


def _are_blocks(words: Sequence[str]) -> bool:
    """Whether words are blocks of residues: of one length, the last at most as long."""
    if len(words) < 2:
        return True
    size = len(words[0])
    if any(len(word) != size for word in words[:-1]) or len(words[-1]) > size:
        return False
    joined = "".join(words)
    return size >= _BLOCK or joined.isupper() or joined.islower() or not joined.isalpha()


def _is_ruler(tokens: Sequence[str]) -> bool:
    """Whether numbers alone on a line stand above a sequence, at equal distances."""
    numbers = [int(token) for token in tokens]
    steps = {after - before for before, after in itertools.pairwise(numbers)}
    return len(steps) <= 1 and min(steps, default=1) > 0 and numbers[0] % 10 in (0, 1)


def is_header(text: str, name: str) -> bool:
    """Whether a line of text looks like a header that has lost its ">".

    Args:
        text: the line.
        name: the id of the record that the line is in.

    Returns:
        Whether it begins with an accession or an id like the record's, or has a header's fields.
    """
    words = text.split()
    if not words or text[0] in "#!;":
        return False
    first = words[0]
    if _DATABASE.match(first) or _ACCESSION.fullmatch(first) or _FIELDS.search(text):
        return True
    return bool(re.search(r"\d", first)) and _shape(first) == _shape(name)


def _shape(name: str) -> str:
    return re.sub(r"\d+", "0", name)
