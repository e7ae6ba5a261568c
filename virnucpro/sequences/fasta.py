r"""FASTA as a stream of records, in memory that depends neither on the file nor on a record.

The parser works on bytes and takes blocks cut anywhere. Inside a block it never goes line by line:
records are split at ``\n>``, and line breaks leave a record in one `bytes.replace`.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from virnucpro.errors import InputError
from virnucpro.sequences.body import SPACE
from virnucpro.sequences.compression import Digest, name_of, open_blocks
from virnucpro.sequences.foreign import NEEDED, foreign_error, is_wide_text
from virnucpro.sequences.record import OpenRecord, Record

__all__ = [
    "MAX_HEADER_BYTES",
    "WORD_END",
    "FastaParser",
    "Record",
    "parse_fasta",
    "read_fasta",
]

logger = logging.getLogger(__name__)

MAX_HEADER_BYTES = 1 << 16

WORD_END = re.compile("[ \t]")
# What may stand before a ">" and is no text: the end of a file that was joined with this one.
_MARKED_START = re.compile(rb"\n(?:\0|\x1a|\xef\xbb\xbf)+>")
_MARKED = b"\0\x1a\xef\xbb\xbf"
_SEMICOLON = ord(";")  # a number: looking for bytes takes ten times as long
_PIR = re.compile(rb"[ \t]*(?:P1|F1|D1|DL|DC|RL|RC|N1|N3|XX);", re.IGNORECASE)


def read_fasta(
    path: Path | str,
    *,
    max_record_residues: int | None = None,
    whole_header: bool = False,
    digest: Digest | None = None,
) -> Iterator[Record]:
    """Read the records of one FASTA file, plain or compressed, in file order.

    Args:
        path: the file; "-" is standard input.
        max_record_residues: letters of a record that are kept; None keeps all, whatever the memory.
        whole_header: whether the id is the whole header, and not its first word.
        digest: takes the raw bytes of the file as they pass (see `open_blocks`).

    Yields:
        Each record, also those without residues.

    Raises:
        InputError: the file cannot be read or decompressed, or is not FASTA: something else before
            the first ">", an empty id, a header over 64 KiB, a ">" among residues, a header that
            has lost its ">", reads or a compressed file among the records, PIR.
    """
    return parse_fasta(
        open_blocks(path, digest=digest),
        name_of(path),
        max_record_residues=max_record_residues,
        whole_header=whole_header,
    )


def parse_fasta(
    blocks: Iterable[bytes],
    path: str,
    *,
    max_record_residues: int | None = None,
    whole_header: bool = False,
) -> Iterator[Record]:
    """Read the records of a file's blocks, see `read_fasta`; `path` is its name for messages."""
    parser = FastaParser(path, max_record_residues=max_record_residues, whole_header=whole_header)
    for block in blocks:
        yield from parser.feed(block)
    yield from parser.finish()


class FastaParser:
    """Turns blocks of bytes, cut anywhere, into records.

    Args:
        path: the file's name, for records and messages.
        max_record_residues: letters of a record that are kept.
        whole_header: whether the id is the whole header.
    """

    def __init__(
        self, path: str, *, max_record_residues: int | None = None, whole_header: bool = False
    ) -> None:
        self.path = path
        self._whole_header = whole_header
        self.limit = max_record_residues
        self._most = sys.maxsize if max_record_residues is None else max_record_residues
        self._line = 1  # of the first byte in _tail
        self._tail = b""  # a header without its end, or a line break that may precede a ">"
        self._started = False
        self._after_cr = False
        self._open: OpenRecord | None = None
        self._latin1_headers = 0
        self._marks = 0

    def feed(self, block: bytes) -> Iterator[Record]:
        """Take the next bytes and give the records that end in them.

        Raises:
            InputError: see `read_fasta`.
        """
        text = self._tail + self._unix_lines(block)
        if not self._started:
            text = self._start(text, final=False)
            if not self._started:
                self._tail = text
                return
        *complete, rest = text.split(b"\n>")
        for part in complete:
            if record := self._whole(part) if self._open is None else None:
                yield record
            else:
                yield from map(self._close, self._at_marks(part))
        *complete, rest = self._at_marks(rest)
        yield from map(self._close, complete)
        self._hold(rest)

    def finish(self) -> Iterator[Record]:
        """Return the last record, if there is any.

        Raises:
            InputError: see `read_fasta`.
        """
        if not self._started:
            self._tail = self._start(self._tail, final=True)
        if self._started:
            yield self._close(self._tail)
        if self._marks:
            logger.warning(
                "%s: NUL, Ctrl-Z or byte order marks before a '>' were skipped %d times",
                *(self.path, self._marks),
            )
        if self._latin1_headers > 1:
            logger.warning("%s: %d headers were read as Latin-1", self.path, self._latin1_headers)

    def _at_marks(self, part: bytes) -> list[bytes]:
        """Cut at the headers with a mark before their ">"."""
        parts = _MARKED_START.split(part)
        self._marks += len(parts) - 1
        return parts

    def _unix_lines(self, block: bytes) -> bytes:
        """Turn CRLF and CR into LF, also where a block ends between the two."""
        if not block:
            return block
        if self._after_cr:
            block = block.removeprefix(b"\n")
        self._after_cr = block.endswith(b"\r")
        if b"\r" in block:
            block = block.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        return block

    def _start(self, text: bytes, *, final: bool) -> bytes:
        """Skip what may stand before the first ">"; refuse anything else."""
        unspaced = text.lstrip(SPACE)
        self._line += text.count(b"\n", 0, len(text) - len(unspaced))
        content = unspaced.lstrip(SPACE + _MARKED)
        if not final and len(content) < 4:
            return unspaced
        if content.startswith(b">") and not is_wide_text(content):
            skipped = unspaced[: len(unspaced) - len(content)]
            self._line += skipped.count(b"\n")
            self._marks += bool(skipped)
            self._started = True
            return content[1:]
        if (final and content) or len(unspaced) >= NEEDED:
            raise foreign_error(unspaced, path=self.path, line=self._line)
        return unspaced

    def _close(self, part: bytes) -> Record:
        """Make the record that ends with `part`."""
        opened = self._open
        if opened is None:
            opened = self._opened(part)
            part = part[len(opened.header) :]
        self._line += opened.extend(part) + 1
        opened.close()
        self._open = None
        return Record(
            *self._names(opened.header, opened.line),
            bytes(opened.residues),
            self.path,
            opened.line,
            opened.findings(),
        )

    def _whole(self, part: bytes) -> Record | None:
        """Make the usual record in few steps: all of it in one block, nothing to count."""
        header, _, body = part.partition(b"\n")
        residues = body.replace(b"\n", b"")
        if not residues.rstrip(b"*").isalpha() or len(residues) > self._most:
            return None
        if len(header) > MAX_HEADER_BYTES or _SEMICOLON in header:
            self._check_header(header)
        line = self._line
        identifier, description = self._names(header, line)
        self._line = line + len(body) - len(residues) + 2
        return Record(identifier, description, residues, self.path, line)

    def _hold(self, rest: bytes) -> None:
        """Keep what may go on in the next block: a part of a header, or an open record."""
        if self._open is None:
            if b"\n" not in rest:
                self._check_header(rest)
                self._tail = rest
                return
            self._open = self._opened(rest)
            rest = rest[len(self._open.header) :]
        # A line break may precede a ">", and so may marks behind it.
        unmarked = rest.rstrip(_MARKED)
        is_held = unmarked.endswith(b"\n") and len(rest) - len(unmarked) < MAX_HEADER_BYTES
        body = unmarked[:-1] if is_held else rest
        self._line += self._open.extend(body)
        self._tail = rest[len(body) :]

    def _opened(self, part: bytes) -> OpenRecord:
        end = part.find(b"\n")
        header = part if end < 0 else part[:end]
        self._check_header(header)
        return OpenRecord(header, self._line, self.limit, self.path)

    def _check_header(self, header: bytes) -> None:
        if _PIR.match(header):
            raise InputError(
                "is PIR/NBRF, whose records have a title on the line below '>'",
                path=self.path,
                line=self._line,
                hint="convert it to FASTA, with Biopython: "
                "SeqIO.convert(FILE, 'pir', CLEAN, 'fasta')",
            )
        if len(header) > MAX_HEADER_BYTES:
            raise InputError(
                f"the header is longer than {MAX_HEADER_BYTES} bytes",
                path=self.path,
                line=self._line,
                hint="is a line break missing between header and residues?",
            )

    def _names(self, header: bytes, line: int) -> tuple[str, str]:
        """Split a header into id and description."""
        try:
            text = header.decode()
        except UnicodeDecodeError:
            text = self._latin1(header, line)
        text = text.strip(" \t")
        if self._whole_header:
            identifier, description = text, ""
        elif "\t" in text:
            identifier, description = WORD_END.split(text, maxsplit=1)
        else:
            identifier, _, description = text.partition(" ")
        if not identifier:
            raise InputError(
                "the record has no id",
                path=self.path,
                line=line,
                hint="give each record a name right after the '>'",
            )
        return identifier, description.lstrip(" \t")

    def _latin1(self, header: bytes, line: int) -> str:
        self._latin1_headers += 1
        if self._latin1_headers == 1:
            logger.warning(
                "%s, line %d: the header is not UTF-8 and was read as Latin-1", self.path, line
            )
        return header.decode("latin-1")
