"""One record of a FASTA file, whole and while it is being read."""

from __future__ import annotations

import re
from typing import NamedTuple

from virnucpro.errors import InputError
from virnucpro.quarantine import Reason
from virnucpro.sequences.body import SPACE, Layout, is_header, read_line
from virnucpro.sequences.gene import Gene

__all__ = ["NO_FINDINGS", "SHOWN", "SPACE", "Findings", "OpenRecord", "Record"]

SHOWN = 40
"""Characters of a text that are shown."""

_LETTERS = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_PLAIN = _LETTERS + b"*-.\n"
_GAPS = b"-."
_MARKS = b"\0\x1a"
_CHAINS = re.compile(r"[A-Za-z*.-]+(?:[:/|]+[A-Za-z*.-]+)+")
_ARCHIVE = re.compile(rb"\x1f\x8b\x08|BZh[1-9]1AY&SY|\xfd7zXZ\0|\x28\xb5\x2f\xfd")
_LONG_LINE = 1 << 20  # bytes; of a longer one, white space is not looked at as between blocks


class Findings(NamedTuple):
    """What was found in a record beside the residues that are kept; nearly always nothing.

    Attributes:
        excess: letters beyond `max_record_residues`, which were counted but not kept.
        whitespace: spaces and tabs that stood between letters of one line and were removed.
        numbers: position numbers that were left out.
        comments: comment lines that were left out.
        marks: ends of lines with NUL or Ctrl-Z, which were left out.
        text_line: the first line that is text, see `virnucpro.sequences.body`; 0 where none is.
        text: its first characters.
        is_chains: whether the text is residues with ``:``, ``/`` or ``|`` between them.
        reason: why the file itself rules the record out, as it does a pseudogene.
        detail: the same in words.
    """

    excess: int = 0
    whitespace: int = 0
    numbers: int = 0
    comments: int = 0
    marks: int = 0
    text_line: int = 0
    text: str = ""
    is_chains: bool = False
    reason: Reason | None = None
    detail: str = ""


NO_FINDINGS = Findings()


class Record(NamedTuple):
    """One record of a FASTA file.

    Attributes:
        id: the header's first word (up to a space or tab), or all of it; any characters are kept.
        description: the rest of the header, without spaces and tabs around it.
        residues: letters, gaps and stops as they are in the file, line breaks and white space
            removed; the first `max_record_residues` of them where the record is longer.
        path: the file, as it was given.
        line: the header's line, counted from 1.
        findings: what was found beside the residues that are kept.
        gene: its place on a contig, where the file tells it.
    """

    id: str
    description: str
    residues: bytes
    path: str
    line: int
    findings: Findings = NO_FINDINGS
    gene: Gene | None = None

    @property
    def length(self) -> int:
        """Letters of the record in the file."""
        return len(self.residues) + self.findings.excess


class OpenRecord:
    """A record whose header is known and whose residues are still coming in.

    Args:
        header: its bytes, without ">".
        line: the header's line.
        limit: letters that are kept; None keeps all.
        path: the file, for messages.
    """

    def __init__(self, header: bytes, line: int, limit: int | None, path: str) -> None:
        self.header = header
        self.line = line
        self.limit = limit
        self.path = path
        self.residues = bytearray()
        self.excess = 0
        self.whitespace = 0
        self.numbers = 0
        self.comments = 0
        self.marks = 0
        self.text_line = 0
        self.text = ""
        self.is_chains = False
        self._number = line  # of the line that is being read, at first the end of the header's
        self._rest = b""  # of a line whose end is still to come
        self._is_long = False  # whether a part of that line was taken already
        self._gaps = 0
        self._fastq_line = 0
        self._lost_header: tuple[int, str] | None = None
        self._layout = Layout()

    def extend(self, body: bytes) -> int:
        """Take the next bytes of the residues; return the number of line breaks in them.

        Raises:
            InputError: a line shows that records were glued together: a ">" among residues, a
                header that has lost its ">", reads, a compressed file.
        """
        breaks = body.count(b"\n")
        text = self._rest + body
        end = text.rfind(b"\n") + 1
        self._rest = text[end:]
        if end:
            self._take_lines(text[:end])
        if len(self._rest) > _LONG_LINE:
            self._take_part(self._rest)
            self._rest, self._is_long = b"", True
        return breaks

    def close(self) -> None:
        """Take what is left of the last line.

        Raises:
            InputError: see `extend`.
        """
        self._take_lines(self._rest + b"\n")
        self._rest = b""

    def findings(self) -> Findings:
        """Return what was found beside the residues; `NO_FINDINGS` itself where that is nothing."""
        found = Findings(
            self.excess,
            self.whitespace,
            self.numbers,
            self.comments,
            self.marks,
            self.text_line,
            self.text,
            self.is_chains,
        )
        return NO_FINDINGS if found == NO_FINDINGS else found

    def _take_lines(self, lines: bytes) -> None:
        """Take whole lines, the usual ones at once."""
        if not self._is_long and not lines.translate(None, _PLAIN) and not self._lost_header:
            self._keep(lines.replace(b"\n", b""))
            self._number += lines.count(b"\n")
            return
        for line in lines[:-1].split(b"\n"):
            if self._is_long:
                self._take_part(line)
                self._is_long = False
            else:
                self._take_line(line)
            self._number += 1

    def _take_line(self, line: bytes) -> None:
        unmarked = line.rstrip(_MARKS)
        self.marks += len(unmarked) < len(line)
        count = len(self.residues) + self.excess
        found = read_line(unmarked, self._layout, count, count - self._gaps)
        self.comments += found.is_comment
        self.numbers += found.numbers
        self.whitespace += found.whitespace
        if found.is_text:
            self._note_text(self._number, line)
        elif found.letters:
            self._check_headers()
            self._keep(found.letters)

    def _take_part(self, part: bytes) -> None:
        """Take a part of a line that is too long to be looked at as a whole."""
        letters = part.translate(None, SPACE)
        if letters.translate(None, _PLAIN):
            self._note_text(self._number, part[: 4 * SHOWN])
        self.whitespace += len(part) - len(letters)
        self._keep(letters)

    def _keep(self, letters: bytes) -> None:
        self._gaps += len(letters) - len(letters.translate(None, _GAPS))
        if self.limit is not None:
            room = self.limit - len(self.residues)
            self.excess += max(0, len(letters) - room)
            letters = letters[:room]
        self.residues += letters

    def _note_text(self, number: int, line: bytes) -> None:
        """Note the first text, and look whether it shows that records were glued together."""
        text = line.decode("utf-8", "replace").strip()
        if not self.text_line:
            self.text_line, self.text = number, text[:SHOWN]
            self.is_chains = _CHAINS.fullmatch(text) is not None
        if _ARCHIVE.search(line):
            raise InputError(
                "has a compressed file among the records",
                path=self.path,
                line=number,
                hint="was it joined with plain text? Unpack it before that",
            )
        if "<" not in text.partition(">")[0] != text:  # in markup, ">" closes a tag
            raise InputError(
                "has a '>' among the residues",
                path=self.path,
                line=number,
                hint="was a file without a final line break joined with another? "
                "Each header begins a line of its own",
            )
        if text.startswith("+") and self._fastq_line:
            raise InputError(
                "has FASTQ among the records",
                path=self.path,
                line=self._fastq_line,
                hint="was a file of reads joined with this one? Take it out: proteins are expected",
            )
        if text.startswith("@") and len(text) > 1:
            self._fastq_line = number
        name = self.header.decode("utf-8", "replace").split(maxsplit=1)
        if self._lost_header is None and is_header(text, name[0] if name else ""):
            self._lost_header = number, text[:SHOWN]

    def _check_headers(self) -> None:
        """Refuse residues below a line that looks like a header."""
        if self._lost_header is not None:
            number, text = self._lost_header
            raise InputError(
                f"has a header without its '>': {text}",
                path=self.path,
                line=number,
                hint="put the '>' back: what is below would be a part of the record above",
            )
