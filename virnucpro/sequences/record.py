"""One record of a FASTA file, whole and while it is being read."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["SPACE", "OpenRecord", "Record"]

SPACE = b" \t\v\f\n"
"""White space of a FASTA file whose line ends are all line feeds."""


class Record(NamedTuple):
    """One record of a FASTA file.

    Attributes:
        id: the header's first word (up to a space or tab); any other characters are kept.
        description: the rest of the header, without spaces and tabs around it.
        residues: the letters as they are in the file, line breaks and white space removed; the
            first `max_record_residues` of them where the record is longer.
        path: the file, as it was given.
        line: the header's line, counted from 1.
        excess: letters beyond `max_record_residues`, which were counted but not kept.
        whitespace: spaces and tabs that stood between letters of one line and were removed.
    """

    id: str
    description: str
    residues: bytes
    path: str
    line: int
    excess: int = 0
    whitespace: int = 0

    @property
    def length(self) -> int:
        """Letters of the record in the file."""
        return len(self.residues) + self.excess


class OpenRecord:
    """A record whose header is known and whose residues are still coming in.

    Args:
        header: its bytes, without ">".
        line: the header's line.
        limit: letters that are kept; None keeps all.
    """

    def __init__(self, header: bytes, line: int, limit: int | None) -> None:
        self.header = header
        self.line = line
        self.limit = limit
        self.residues = bytearray()
        self.excess = 0
        self.whitespace = 0
        self._line_end = 0  # white space at the end of the last line so far

    def extend(self, body: bytes) -> int:
        """Take the next bytes of the residues; return the number of line breaks in them."""
        letters = body.translate(None, SPACE)
        breaks = body.count(b"\n")
        if self._line_end or len(body) - len(letters) != breaks:
            self._count_whitespace(body)
        if self.limit is not None:
            room = self.limit - len(self.residues)
            self.excess += max(0, len(letters) - room)
            letters = letters[:room]
        self.residues += letters
        return breaks

    def _count_whitespace(self, body: bytes) -> None:
        """Count white space between letters, not at line ends: those are part of the break."""
        for number, line in enumerate(body.split(b"\n")):
            if number:
                self._line_end = 0
            text = line.rstrip(SPACE)
            if text:
                self.whitespace += self._line_end + len(text) - len(text.translate(None, SPACE))
                self._line_end = 0
            self._line_end += len(line) - len(text)
