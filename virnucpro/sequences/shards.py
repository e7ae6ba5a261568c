"""Shard files: the distinct sequences of one part of a sample, as FASTA named by content.

Each sequence is a line ``>{key as hex}`` and a line of residues, in the order of the keys, so that
a shard's bytes follow from the set of its sequences and from nothing else.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from virnucpro.errors import DataError
from virnucpro.files import sha256_of, write_bytes
from virnucpro.sequences.alphabet import sequence_key, sequence_keys

__all__ = [
    "ShardSequences",
    "read_shard",
    "shard_bytes",
    "shard_digits",
    "shard_name",
    "write_shard",
]

_DIGITS = 12  # of a shard's SHA-256, in its name
_NAMED_BY_CONTENT = re.compile(rf"\d+-([0-9a-f]{{{_DIGITS}}})")
_HINT = "remove the shards of this sample, so that they are made again"


@dataclass(frozen=True, slots=True)
class ShardSequences:
    """The sequences of a shard; the index in both lists is the row that plans refer to.

    Attributes:
        keys: hexadecimal keys, strictly increasing.
        residues: normalised residues.
    """

    keys: list[str]
    residues: list[bytes]

    def __len__(self) -> int:
        """Number of sequences."""
        return len(self.keys)


def shard_name(number: int, sha256: str) -> str:
    """Name a shard by its number and its content, whose SHA-256 is given in hexadecimal."""
    return f"{number:05d}-{sha256[:_DIGITS]}"


def shard_digits(shard: Path) -> str:
    """Return the first digits of a shard's SHA-256: from its name, or else from its content."""
    match = _NAMED_BY_CONTENT.fullmatch(shard.stem)
    return match[1] if match else sha256_of(shard)[:_DIGITS]


def shard_bytes(lines: Iterable[bytes]) -> bytes:
    """Make a shard's content.

    Args:
        lines: of key as hex, space, residues and line feed; distinct, in any order.
    """
    return b">".join([b"", *sorted(lines)]).replace(b" ", b"\n")


def write_shard(path: Path, sequences: Iterable[bytes]) -> None:
    """Write a shard of distinct sequences, sorted by key.

    Args:
        path: the shard file.
        sequences: normalised residues, in any order, repeated or not.
    """
    lines = {b"%b %b\n" % (sequence_key(letters).hex().encode(), letters) for letters in sequences}
    write_bytes(path, shard_bytes(lines))


def read_shard(path: Path) -> ShardSequences:
    """Read a shard and verify it: its form, its order, and each key against its residues.

    Raises:
        DataError: the shard is missing, truncated or damaged; the message names the line.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror})", path=path, hint=_HINT) from error
    lines = content.split(b"\n")
    if lines.pop() or len(lines) % 2:
        raise DataError("the shard is truncated", path=path, hint=_HINT)
    headers, residues = lines[::2], lines[1::2]
    keys = sequence_keys(residues)
    # As one text each: that is faster than line by line, and the line breaks keep lines apart.
    if b"\n".join([b"", *headers]) != "\n>".join(["", *keys]).encode():
        row = next(row for row, key in enumerate(keys) if headers[row] != b">" + key.encode())
        raise DataError(
            "the key is not the hash of the residues below it",
            path=path,
            line=2 * row + 1,
            hint=_HINT,
        )
    if not all(map(operator.lt, headers, headers[1:])):
        row = next(row for row in range(1, len(keys)) if headers[row] <= headers[row - 1])
        raise DataError("keys are not increasing", path=path, line=2 * row + 1, hint=_HINT)
    return ShardSequences(keys, residues)
