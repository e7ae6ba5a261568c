"""A segment: vectors of one request, with their keys, in a folder that is whole or not there.

    {store}/{request}/{segment}/manifest.json
                                keys.npy               uint8 [rows, 16], increasing
                                crc32.npy              uint32 [rows], of each row's values
                                embeddings.npy         [rows, layers, dim]
                                pseudo_perplexity.npy  float64 [rows], where it was computed

The folder is written under a temporary name and renamed, and never changed afterwards. Its name is
a hash of its manifest, which has the hashes of the files. Keys are checked against their hash, and
each row against its checksum, before they are used. Nothing is mapped into memory: a read of a file
that was removed or cut short on another machine fails, where a mapping would end the process.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from virnucpro.errors import DataError
from virnucpro.files import sha256_of
from virnucpro.formats import STORE_FORMAT, read_as
from virnucpro.plan.items import increasing
from virnucpro.sequences.alphabet import KEY_BYTES
from virnucpro.store.checksums import row_checksums
from virnucpro.store.request import Request

__all__ = [
    "MANIFEST",
    "SEGMENT_ROWS",
    "FileFacts",
    "Segment",
    "SegmentManifest",
    "array_file",
    "open_segment",
    "read_manifest",
]

SEGMENT_ROWS = 1 << 20
"""Rows that a segment has at most, so that its keys can be read at once."""

MANIFEST = "manifest.json"
_HINT = "`virnucpro store verify --remove` removes what is damaged"
_RUN_BYTES = 8 << 20  # that are read at once, at most
_GAP_BYTES = 64 << 10  # that are read and dropped rather than read around


@dataclass(frozen=True)
class FileFacts:
    """A file of a segment."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class SegmentManifest:
    """The ``manifest.json`` of a segment."""

    request: Request
    rows: int
    shape: list[int]  # of a row, [layers, dim]
    files: dict[str, FileFacts]  # by name

    def as_json(self) -> dict[str, Any]:
        """Return what stands in the file."""
        return {"format": STORE_FORMAT, **asdict(self)}

    @cached_property
    def name(self) -> str:
        """The name of the segment: BLAKE2b-128 over the manifest, in hexadecimal."""
        text = json.dumps(self.as_json(), sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    @property
    def bytes(self) -> int:
        """Bytes of all files but the manifest."""
        return sum(file.bytes for file in self.files.values())


@dataclass(frozen=True)
class Segment:
    """A segment whose manifest is sound and whose files have their sizes."""

    path: Path
    manifest: SegmentManifest

    @property
    def request(self) -> Request:
        """What the rows were computed with."""
        return self.manifest.request

    def keys(self) -> NDArray[np.uint8]:
        """Read the keys, [rows, 16].

        Raises:
            DataError: they are damaged.
            OSError: they cannot be read.
        """
        keys = self._read("keys.npy", np.dtype(np.uint8), (self.manifest.rows, KEY_BYTES))
        if not increasing(keys):
            raise DataError("its keys are not increasing", path=self.path, hint=_HINT)
        return keys

    def read(
        self, rows: NDArray[np.int64]
    ) -> Iterator[tuple[slice, dict[str, NDArray[Any]], NDArray[np.bool_]]]:
        """Read rows in blocks, in one direction.

        Args:
            rows: [n] increasing.

        Yields:
            Which of `rows` a block has; its values by the names of `Request.arrays`,
            [m, layers, dim] and [m]; and which of them are whole, [m].

        Raises:
            DataError: checksums or an array's header are damaged.
            OSError: a file cannot be read, or is shorter than it was.
        """
        checksums = self._read("crc32.npy", np.dtype(np.uint32), (self.manifest.rows,))
        names = list(self.request.arrays)
        files = {name: self.path / array_file(name) for name in names}
        for chosen in _runs(rows, self._row_bytes("embeddings")):
            part = rows[chosen]
            values = {name: self._read_rows(files[name], name, part) for name in names}
            yield chosen, values, row_checksums(list(values.values())) == checksums[part]

    def verify(self) -> None:
        """Check every byte.

        Raises:
            DataError: a file is damaged.
            OSError: a file cannot be read.
        """
        for name, facts in self.manifest.files.items():
            if sha256_of(self.path / name) != facts.sha256:
                raise DataError("is damaged: it has another hash", path=self.path / name)
        self.keys()

    def array_shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a row of an array."""
        return tuple(self.manifest.shape) if name == "embeddings" else ()

    def _row_bytes(self, name: str) -> int:
        count = int(np.prod(self.array_shape(name), dtype=np.int64))
        return count * np.dtype(self.request.arrays[name]).itemsize

    def _read(self, name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
        """Read a small file whole, and check its hash."""
        path = self.path / name
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != self.manifest.files[name].sha256:
            raise DataError("is damaged: it has another hash", path=path, hint=_HINT)
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        return np.frombuffer(content, dtype, offset=len(content) - size).reshape(shape)

    def _read_rows(self, path: Path, name: str, rows: NDArray[np.int64]) -> NDArray[Any]:
        """Read rows that lie near each other with one read."""
        width, first = self._row_bytes(name), int(rows[0])
        span = int(rows[-1]) - first + 1
        header = self.manifest.files[path.name].bytes - self.manifest.rows * width
        with path.open("rb", buffering=0) as handle:
            handle.seek(header + first * width)
            content = _read_exactly(handle, span * width, path)
        values = np.frombuffer(content, self.request.arrays[name])
        return values.reshape(span, *self.array_shape(name))[rows - first]


def array_file(name: str) -> str:
    """Return the file of one of `Request.arrays`."""
    return f"{name}.npy"


def open_segment(path: Path) -> Segment:
    """Open a segment; only its keys and rows are not checked yet.

    Raises:
        DataError: it is damaged, or not all of it is there.
        InputError: it has another format number.
        OSError: it cannot be read.
    """
    manifest = read_manifest(path)
    expected = {"keys.npy", "crc32.npy", *map(array_file, manifest.request.arrays)}
    if (manifest.name, manifest.request.id) != (path.name, path.parent.name):
        raise DataError("is not the manifest of this segment", path=path / MANIFEST, hint=_HINT)
    rows, shape = manifest.rows, manifest.shape
    possible = 0 < rows <= SEGMENT_ROWS and len(shape) == 2 and min(shape) > 0
    if set(manifest.files) != expected or not possible:
        raise DataError("does not describe a segment", path=path / MANIFEST, hint=_HINT)
    for name, facts in manifest.files.items():
        size = (path / name).stat().st_size
        if size != facts.bytes:
            raise DataError(f"has {size:,} bytes of {facts.bytes:,}", path=path / name, hint=_HINT)
    return Segment(path, manifest)


def read_manifest(path: Path) -> SegmentManifest:
    """Read the manifest of the segment in the folder `path`; raises as `open_segment`."""
    manifest = path / MANIFEST
    manifest.stat()  # which tells more than that it is missing
    return read_as(SegmentManifest, manifest, "store segment", STORE_FORMAT)


def _runs(rows: NDArray[np.int64], row_bytes: int) -> Iterator[slice]:
    """Divide increasing rows into runs that are read at once: near each other, and not too many."""
    most, gap = max(1, _RUN_BYTES // row_bytes), max(1, _GAP_BYTES // row_bytes)
    ends = [*(np.flatnonzero(np.diff(rows) > gap) + 1).tolist(), len(rows)]
    start = 0
    for end in ends:
        while start < end:
            stop = min(end, int(np.searchsorted(rows, rows[start] + most)))
            yield slice(start, stop)
            start = stop


def _read_exactly(handle: BinaryIO, size: int, path: Path) -> bytearray:
    content = bytearray(size)
    view = memoryview(content)
    while view and (count := handle.readinto(view)):  # type: ignore[attr-defined]
        view = view[count:]
    if view:
        raise DataError("is shorter than it was", path=path, hint=_HINT)
    return content
