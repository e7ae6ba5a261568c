"""Plain and compressed files as one stream of blocks, in bounded memory.

The kind of compression is read from the first bytes, never from the name. Every member of an
archive is read (``cat a.gz b.gz``, bgzip, pzstd). An archive that is truncated, corrupt or followed
by something else is an error: a reader that stops quietly there loses records.
"""

from __future__ import annotations

import bz2
import lzma
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import zstandard

from virnucpro.errors import InputError

__all__ = ["STANDARD_INPUT", "Digest", "name_of", "open_blocks"]

STANDARD_INPUT = "-"

_BLOCK = 1 << 18
_XZ_MEMORY = 128 << 20  # `xz -9` needs 65 MiB; an archive may ask for 4 GiB
_ZSTD_WINDOW = 128 << 20  # what `zstd -d` accepts without --long or --memory


class Digest(Protocol):
    """What takes the raw bytes as they pass: a `hashlib` object, or a counter."""

    def update(self, data: bytes, /) -> None:
        """Take the next bytes."""


@dataclass(frozen=True)
class _Codec:
    """One kind of compression.

    Attributes:
        name: as messages name it.
        magics: first bytes of an archive.
        new: makes the decompressor of one member.
        error: what the decompressor raises on data that it cannot read.
        slice_bytes: compressed bytes given at once, so that a bomb's output stays small: deflate
            reaches 1,032 to 1, and zstd makes a block of 128 KiB out of 4 bytes.
        bounded: the decompressor itself limits its output. bzip2 must: 45 bytes can hold 45 MB.
        padded: zero bytes may follow a member (tapes, block devices; the xz format's padding).
    """

    name: str
    magics: tuple[bytes, ...]
    new: Callable[[], Any]
    error: type[Exception]
    slice_bytes: int
    bounded: bool
    padded: bool


def _skippable_frames() -> tuple[bytes, ...]:
    return tuple(bytes([low]) + b"\x2a\x4d\x18" for low in range(0x50, 0x60))


_CODECS = (
    _Codec("gzip", (b"\x1f\x8b",), lambda: zlib.decompressobj(31), zlib.error, 8192, False, True),
    _Codec("bzip2", (b"BZh",), bz2.BZ2Decompressor, OSError, _BLOCK, True, False),
    _Codec(
        "xz",
        (b"\xfd7zXZ\x00",),
        lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY),
        lzma.LZMAError,
        _BLOCK,
        True,
        True,
    ),
    _Codec(
        "zstd",
        (b"\x28\xb5\x2f\xfd", *_skippable_frames()),
        lambda: zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW).decompressobj(),
        zstandard.ZstdError,
        512,
        False,
        False,
    ),
)


def open_blocks(path: Path | str, *, digest: Digest | None = None) -> Iterator[bytes]:
    """Read a file, decompressed where it is compressed, in blocks of at most 256 KiB.

    Args:
        path: plain, gzip, bzip2, xz or zstd; "-" is standard input.
        digest: takes the raw bytes of the file as they pass.

    Yields:
        The next bytes, never empty.

    Raises:
        InputError: the file cannot be opened, or the archive is truncated, corrupt, asks for more
            memory than 128 MiB, or is followed by bytes that are no archive.
    """
    name = name_of(path)
    with ExitStack() as stack:
        if str(path) == STANDARD_INPUT:
            handle: BinaryIO = sys.stdin.buffer
        else:
            try:
                handle = stack.enter_context(Path(path).open("rb"))
            except OSError as error:
                raise InputError(f"cannot be read ({error.strerror})", path=name) from error
        raw = _raw_blocks(handle, digest)
        first = next(raw, b"")
        codec = next((codec for codec in _CODECS if first.startswith(codec.magics)), None)
        blocks = _chain(first, raw)
        yield from blocks if codec is None else _decompressed(blocks, codec, name)


def name_of(path: Path | str) -> str:
    """Name an input as messages and records name it."""
    return "standard input" if str(path) == STANDARD_INPUT else str(path)


def _raw_blocks(handle: BinaryIO, digest: Digest | None) -> Iterator[bytes]:
    while block := handle.read(_BLOCK):
        if digest is not None:
            digest.update(block)
        yield block


def _chain(first: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    if first:
        yield first
    yield from rest


def _slices(data: bytes, size: int) -> Iterator[bytes]:
    return (data[start : start + size] for start in range(0, len(data), size))


def _decompressed(raw: Iterable[bytes], codec: _Codec, name: str) -> Iterator[bytes]:
    """Decompress member after member; each member gets a decompressor of its own."""
    member, begun, finished = codec.new(), False, 0
    for data in (piece for block in raw for piece in _slices(block, codec.slice_bytes)):
        while data:
            if codec.padded and finished and not begun:
                data = data.lstrip(b"\0")
                if not data:
                    break
            for output in _outputs(member, data, codec, name, finished):
                yield from _slices(output, _BLOCK)
            begun = not member.eof
            if begun:
                break
            data = member.unused_data
            member, finished = codec.new(), finished + 1
    if begun or not finished:
        what = (
            f"after {finished} whole {codec.name} member(s) comes a truncated one, or garbage"
            if finished
            else f"the {codec.name} archive is truncated"
        )
        hint = "the file is not complete: copy or download it again"
        raise InputError(what, path=name, hint=hint)


def _outputs(member: Any, data: bytes, codec: _Codec, name: str, finished: int) -> Iterator[bytes]:
    """Feed a member its next compressed bytes, and pass on what comes out of them."""
    try:
        if not codec.bounded:
            yield member.decompress(data)
            return
        yield member.decompress(data, _BLOCK)
        while not (member.eof or member.needs_input):
            yield member.decompress(b"", _BLOCK)
    except codec.error as error:
        what = (
            f"the {codec.name} archive is corrupt ({error})"
            if not finished
            else f"after {finished} whole {codec.name} member(s) comes a corrupt one, or garbage "
            f"({error})"
        )
        hint = "copy or download the file again"
        raise InputError(what, path=name, hint=hint) from error
