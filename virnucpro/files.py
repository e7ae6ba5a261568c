"""Every file this package writes goes through here: a final name means complete, synced bytes.

A file is written under a temporary name in its target's folder, flushed to the disk, renamed, and
the folder is flushed too, so that neither a kill nor a power loss leaves half a file under a final
name. Two writers of one target never share a temporary name.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from virnucpro.errors import DataError

__all__ = [
    "atomic_path",
    "read_json",
    "reserve",
    "sha256_meanwhile",
    "sha256_of",
    "sync_directory",
    "write_bytes",
    "write_json",
]

# Large, so that a thread which hashes rarely has to wait for the interpreter's lock.
_BLOCK = 1 << 24


@contextlib.contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """Give a temporary path to write to, and move it to `target` when the block ends well.

    When the block raises, the temporary file is removed and `target` stays as it was. The folder
    of `target` is made where it is missing.

    Args:
        target: the final path.

    Yields:
        A path in the same folder; the block must leave a file there.

    Raises:
        OSError: writing, syncing or renaming failed; the message names the path.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name[:100]}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as handle:
            os.fsync(handle.fileno())
        temporary.replace(target)
        sync_directory(target.parent)
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(target)) from error
    finally:
        temporary.unlink(missing_ok=True)


def sync_directory(directory: Path) -> None:
    """Flush a folder's entries to the disk, so that a rename in it survives a power loss."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(target: Path, content: bytes) -> None:
    """Write `content` to `target` as one whole (see `atomic_path`)."""
    with atomic_path(target) as temporary:
        temporary.write_bytes(content)


def write_json(target: Path, value: Any) -> None:
    """Write `value` as JSON, indented and with a final newline; the same value, the same bytes."""
    write_bytes(target, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def reserve(path: Path, size: int) -> None:
    """Reserve a file's space on the disk, so that a full disk shows before the work.

    Args:
        path: a temporary path from `atomic_path`; made where it is missing, else kept.
        size: bytes that will be needed.

    Raises:
        DataError: the disk has not that much free, with the bytes needed and free.
        OSError: the file cannot be made.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        os.posix_fallocate(descriptor, 0, max(size, 1))
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
            raise
        free = shutil.disk_usage(path.parent).free
        path.unlink(missing_ok=True)
        raise DataError(
            f"no space: {size:,} bytes are needed, {free:,} are free",
            path=path.parent,
            hint="make room, or write to another disk",
        ) from error
    finally:
        os.close(descriptor)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object that this package wrote.

    Raises:
        DataError: the file is missing, or is not a JSON object.
    """
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DataError("is missing", path=path) from None
    except ValueError as error:
        raise DataError(
            f"is not JSON ({error})", path=path, hint="remove it to have it made again"
        ) from error
    if not isinstance(value, dict):
        raise DataError("is not a JSON object", path=path, hint="remove it to have it made again")
    return value


def sha256_of(path: Path) -> str:
    """Hash a file's bytes with SHA-256, as a hexadecimal string."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as handle:
        buffer = memoryview(bytearray(min(os.fstat(handle.fileno()).st_size, _BLOCK) or 1))
        while size := handle.readinto(buffer):
            digest.update(buffer[:size])
    return digest.hexdigest()


def sha256_meanwhile(path: Path) -> Future[str]:
    """Hash a file in a thread of its own, while the caller does something else.

    Returns:
        What will hold the hash, or the OSError of reading.
    """
    with_one_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sha256")
    try:
        return with_one_thread.submit(sha256_of, path)
    finally:
        with_one_thread.shutdown(wait=False)
