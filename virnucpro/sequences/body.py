"""The grammar of a FASTA body: what of a line is residues, and what is text, which never is.

A line holds letters, gaps (``-``, ``.``), ``*`` and white space. Dashes of Unicode count as ``-``,
and any other character outside ASCII counts as one letter that no model knows, ``?``. White space
inside a line separates blocks of equal length, the last of which may be shorter, as GenBank, EMBL
and Clustal print them; position numbers before or after the blocks are left out. A line that begins
with ``;`` is a comment of the old FASTA format. Everything else is text.

Words can have the lengths of blocks by chance (``access denied``). So a line with white space or
a number counts as residues only where it reads like a printed sequence: see `Layout`.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["SPACE", "Layout", "Line", "is_header", "is_three_letter_code", "read_line"]

SPACE = b" \t\v\f\n"
"""White space of a FASTA file whose line ends are all line feeds."""

UNKNOWN = "?"
"""Stands for a character outside ASCII."""

_USUAL_BLOCK = 10  # letters, in the prints of GenBank, EMBL and UniProt
_SHORT_BLOCK = 5  # letters; most words in capitals have more
_FEW_LETTERS = 20  # fewer are words as easily as residues
_MINUS = "\u2212"
_WIDE_SPACE = "\u00a0"  # stands for all white space outside ASCII
_UNSEEN = "\u200b"  # stands for all that has no width
_NUMBER = re.compile("[0-9]{1,15}")
_BLOCK = re.compile("[A-Za-z*.\\-\u0080-\U0010ffff]+")
_OUTSIDE = re.compile("[^\0-\x7f]")
_NOT_IN_PROTEINS = re.compile("[JOUjou]")  # or hardly ever, while most sentences have one
_CODES = (
    "ALA|ARG|ASN|ASP|ASX|CYS|GLN|GLU|GLX|GLY|HIS|ILE|LEU|LYS|MET|PHE|PRO|PYL|SEC|SER|THR|TRP|TYR"
    "|VAL|XAA|XLE"
)
_CODE = re.compile(_CODES, re.IGNORECASE)
_WORD_OF_CODES = re.compile(f"(?:H-)?(?:(?:{_CODES})-?){{3,}}(?:OH)?".encode(), re.IGNORECASE)
_DATABASE = re.compile(r"[a-z]{2,3}\|[^|\s]+\|?")
_ACCESSION = re.compile(
    r"(?:[A-Z]{1,4}_?\d{5,}|[OPQ]\d[A-Z0-9]{3}\d|[A-NR-Z]\d(?:[A-Z][A-Z0-9]{2}\d){1,2}|[A-Z]{2}_\d{6,})"
    r"(?:\.\d+)?(?:_\d+)?"
)
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


_TEXT = Line(is_text=True)


class Layout:
    """How a record is printed, as far as its lines have told.

    Words are blocks of residues where they are as long as the blocks above, and written in the same
    case. The first such line has to show that it is residues: by three blocks of 10 or more; or, in
    one case and without J, O and U, by at least 20 letters, by letters one by one, by the right
    number beside blocks of 10 or upper case, or by blocks of 10 or two of at most 5 in upper case.
    The three-letter code is text.

    A position number is one that counts the record's letters, with gaps or without, or one beside
    such blocks that is larger than those before it: a part of a sequence keeps its positions.
    """

    def __init__(self) -> None:
        self._block = 0  # letters of a block, once known
        self._is_upper = False
        self._number = -1  # the largest so far

    def fits(self, blocks: Sequence[str], numbers: Sequence[tuple[int, set[int]]]) -> bool:
        """Whether blocks and the numbers beside them are printed residues.

        Args:
            blocks: what white space separates, without the numbers.
            numbers: each with the positions that it may stand for, counted from 1.
        """
        if len(blocks) < 2 and not numbers:
            return True
        size = len(blocks[0])
        if any(len(block) != size for block in blocks[:-1]) or len(blocks[-1]) > size:
            return False
        are_right = all(number in places for number, places in numbers)
        known = self._continues(blocks) or self._begins(blocks, bool(numbers) and are_right)
        largest = max((number for number, _ in numbers), default=self._number)
        smallest = min((number for number, _ in numbers), default=self._number)
        if not known or not (are_right or smallest > self._number):
            return False
        if len(blocks) > 1 or size > self._block:
            self._block = size
        self._is_upper = blocks[0].isupper()
        self._number = max(self._number, largest)
        return True

    def _continues(self, blocks: Sequence[str]) -> bool:
        """Whether blocks go on with those of an earlier line."""
        size = len(blocks[0])
        as_long = size == self._block or (len(blocks) == 1 and size < self._block)
        return as_long and "".join(blocks).isupper() == self._is_upper

    def _begins(self, blocks: Sequence[str], is_numbered: bool) -> bool:
        """Whether blocks show by themselves that they are residues."""
        size, count = len(blocks[0]), len(blocks)
        joined = "".join(blocks)
        if count >= 3 and size >= _USUAL_BLOCK:
            return True
        if all(map(_CODE.fullmatch, blocks)) or not _may_be_residues(joined):
            return False
        if len(joined) >= _FEW_LETTERS or (count >= 3 and size == 1):
            return True
        if is_numbered:
            return size >= _USUAL_BLOCK or joined.isupper()
        is_short = count > 1 and size <= _SHORT_BLOCK
        return joined.isupper() and (is_short or size == _USUAL_BLOCK)


def read_line(line: bytes, layout: Layout, letters: int, residues: int) -> Line:
    """Read one line of a body.

    Args:
        line: its bytes, without the line break.
        layout: how the record is printed; learns from the line.
        letters: of the record before this line, gaps counted.
        residues: the same, gaps not counted.

    Returns:
        What it holds.
    """
    text = _plain(line)
    if text.startswith(";"):
        return Line(is_comment=True)
    shown = text.replace(_UNSEEN, "")
    tokens = shown.split()
    if not tokens:
        return Line()
    if all(map(_NUMBER.fullmatch, tokens)):
        return Line(numbers=len(tokens)) if _is_ruler(tokens) else _TEXT
    first = 1 if _NUMBER.fullmatch(tokens[0]) else 0
    last = len(tokens) - (1 if _NUMBER.fullmatch(tokens[-1]) else 0)
    blocks = tokens[first:last]
    found = "".join(blocks)
    if not _BLOCK.fullmatch(found):
        return _TEXT
    after = letters + len(found), residues + len(found) - found.count("-") - found.count(".")
    numbers = [(int(tokens[0]), {letters + 1, residues + 1})] if first else []
    numbers += [(int(tokens[-1]), set(after))] if last < len(tokens) else []
    spaces = len(text.strip(_UNSEEN + _WIDE_SPACE + SPACE.decode())) - len(found)
    if not layout.fits(blocks, numbers) and not _are_joined(shown):
        return _TEXT
    return Line(_OUTSIDE.sub(UNKNOWN, found).encode(), 0 if numbers else spaces, len(numbers))


def _plain(line: bytes) -> str:
    """Decode a line; what stands for white space and gaps becomes one character each."""
    if line.isascii():
        return line.decode("ascii")
    try:
        text = line.decode()
    except UnicodeDecodeError:
        text = line.decode("cp1252", "replace")
    return _OUTSIDE.sub(lambda found: _stands_for(found[0]), text)


def _stands_for(character: str) -> str:
    if character.isspace():
        return _WIDE_SPACE
    category = unicodedata.category(character)
    if category == "Cf":  # zero-width spaces, soft hyphens, marks of direction
        return _UNSEEN
    return "-" if category == "Pd" or character == _MINUS else character


def _may_be_residues(letters: str) -> bool:
    """Whether letters that stood in words are rather residues: of one case, and no J, O or U."""
    is_one_case = letters in (letters.upper(), letters.lower())
    return is_one_case and not _NOT_IN_PROTEINS.search(letters)


def _are_joined(text: str) -> bool:
    """Whether residues are apart only by white space outside ASCII, which pasting leaves."""
    letters = text.strip().replace(_WIDE_SPACE, "")
    is_long = len(letters) >= _FEW_LETTERS or letters.isupper()
    return is_long and bool(_BLOCK.fullmatch(letters)) and _may_be_residues(letters)


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
        Whether it begins with an accession, an id like the record's or the ">" of HTML, or has a
        header's fields.
    """
    words = text.split()
    if not words or text[0] in "#!;":
        return False
    if text.startswith("&gt;"):  # a ">" of HTML
        return True
    first = words[0]
    if _DATABASE.match(first) or _ACCESSION.fullmatch(first) or _FIELDS.search(text):
        return True
    return bool(re.search(r"\d", first)) and _shape(first) == _shape(name)


def is_three_letter_code(residues: bytes) -> bool:
    """Whether letters and gaps are the three-letter code of three residues or more."""
    return _WORD_OF_CODES.fullmatch(residues) is not None


def _shape(name: str) -> str:
    return re.sub(r"\d+", "0", name)
