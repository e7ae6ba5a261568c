"""Puts segments into a store, and takes them away: by one rename each, whoever reads meanwhile."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from virnucpro.errors import VirnucproError
from virnucpro.files import (
    atomic_path,
    give_name,
    reserve,
    scratch_directory,
    sync_directory,
    write_json,
)
from virnucpro.store.checksums import row_checksums
from virnucpro.store.request import Request
from virnucpro.store.segment import (
    MANIFEST,
    FileFacts,
    SegmentManifest,
    array_file,
    open_segment,
)

__all__ = ["remove_segment", "write_segment"]

logger = logging.getLogger(__name__)

Arrays = Mapping[str, NDArray[Any]]


def write_segment(
    directory: Path,
    request: Request,
    keys: NDArray[np.uint8],
    shape: Sequence[int],
    blocks: Iterable[Arrays],
) -> Path:
    """Add a segment to a store; where a whole one of the same content is there, it stays.

    Args:
        directory: the store, which is made where it is missing.
        request: what the rows were computed with.
        keys: [n, 16] increasing, 1 to `SEGMENT_ROWS`.
        shape: of a vector, [layers, dim].
        blocks: the rows in order, by the names of `Request.arrays`.

    Returns:
        The segment's folder.

    Raises:
        DataError: the disk has not enough space.
        OSError: the store cannot be written to.
    """
    folder = directory / request.id
    with scratch_directory(folder / "segment") as staging:
        files = _write_arrays(staging, request, len(keys), shape, blocks)
        files["keys.npy"] = _write_array(staging / "keys.npy", keys)
        manifest = SegmentManifest(request, len(keys), list(shape), dict(sorted(files.items())))
        write_json(staging / MANIFEST, manifest.as_json(), sealed=True)
        target = folder / manifest.name
        _give_name(staging, target)
        sync_directory(folder)
    return target


def remove_segment(path: Path) -> None:
    """Take a segment out of a store: at once for readers, who look by its name.

    Raises:
        OSError: the store cannot be written to.
    """
    with scratch_directory(path) as grave:
        try:
            give_name(path, grave / path.name)
        except FileNotFoundError:  # another process was faster
            return
        sync_directory(path.parent)


def _give_name(staging: Path, target: Path) -> None:
    """Put a segment under its name, unless a whole one has it."""
    try:
        give_name(staging, target)
    except OSError:
        if not target.is_dir():
            raise
        try:
            open_segment(target).verify()
        except (VirnucproError, OSError) as error:
            logger.warning("store segment %s is written anew: %s", target, error)
            remove_segment(target)
            give_name(staging, target)


def _write_arrays(
    staging: Path, request: Request, rows: int, shape: Sequence[int], blocks: Iterable[Arrays]
) -> dict[str, FileFacts]:
    """Write the rows and their checksums; return the files' facts by name."""
    checksums, writers = [], {}
    with ExitStack() as stack:
        for name, dtype in request.arrays.items():
            path = stack.enter_context(atomic_path(staging / array_file(name)))
            whole = (rows, *shape) if name == "embeddings" else (rows,)
            writers[name] = _Writer(path, whole, np.dtype(dtype), stack)
        for block in blocks:
            values = [np.asarray(block[name], writer.dtype) for name, writer in writers.items()]
            for writer, array in zip(writers.values(), values, strict=True):
                writer.write(np.ascontiguousarray(array))
            checksums.append(row_checksums(values))
        files = {array_file(name): writer.finish() for name, writer in writers.items()}
    return files | {"crc32.npy": _write_array(staging / "crc32.npy", np.concatenate(checksums))}


def _write_array(target: Path, array: NDArray[Any]) -> FileFacts:
    with ExitStack() as stack:
        path = stack.enter_context(atomic_path(target))
        writer = _Writer(path, array.shape, array.dtype, stack)
        writer.write(np.ascontiguousarray(array))
        return writer.finish()


class _Writer:
    """Writes an array in numpy's format block by block, and hashes it on the way.

    Args:
        path: a temporary path.
        shape: of the whole array.
        dtype: of its values.
        stack: closes the file.
    """

    def __init__(
        self, path: Path, shape: tuple[int, ...], dtype: np.dtype[Any], stack: ExitStack
    ) -> None:
        self.dtype = dtype
        reserve(path, int(np.prod(shape, dtype=np.int64)) * dtype.itemsize)
        self._file: BinaryIO = stack.enter_context(path.open("r+b"))
        self._left = shape[0]
        self._sha256 = hashlib.sha256()
        header = {"descr": npy.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        npy.write_array_header_1_0(_Tee(self._file, self._sha256), header)

    def write(self, block: NDArray[Any]) -> None:
        """Append rows, which lie in one piece."""
        content = block.reshape(-1).view(np.uint8).data
        self._file.write(content)
        self._sha256.update(content)
        self._left -= len(block)

    def finish(self) -> FileFacts:
        """Return size and hash.

        Raises:
            ValueError: there were more or fewer rows than the shape has.
        """
        if self._left:
            raise ValueError(f"the blocks have {-self._left} rows more than keys")
        self._file.flush()
        return FileFacts(self._file.tell(), self._sha256.hexdigest())


class _Tee:
    """Hands what is written to a file to a hash, too."""

    def __init__(self, file: BinaryIO, digest: Any) -> None:
        self._file, self._digest = file, digest

    def write(self, content: bytes) -> int:
        self._digest.update(content)
        return self._file.write(content)
