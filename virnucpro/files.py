"""Every file this package writes goes through here: a final name means complete, synced bytes.

A file is written under a temporary name in its target's folder, flushed to the disk, renamed, and
the folder is flushed too, so that neither a kill nor a power loss leaves half a file under a final
name. Two writers of one target never share a temporary name. What a killed writer left in a folder
is removed by the next process that writes there.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import logging
import os
import shutil
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from virnucpro.errors import DataError
from virnucpro.temporary import in_use, is_abandoned, temporary_name

__all__ = [
    "atomic_directory",
    "atomic_path",
    "give_name",
    "publish",
    "read_json",
    "remove",
    "remove_abandoned",
    "remove_durably",
    "reserve",
    "scratch_directory",
    "sha256_in_background",
    "sha256_of",
    "sync_directory",
    "temporary_file",
    "write_bytes",
    "write_json",
]

logger = logging.getLogger(__name__)

# Large, so that a thread which hashes rarely has to wait for the interpreter's lock.
_BLOCK = 1 << 24
_SEAL = "seal"  # the name of its entry
_SEALED_BY = "sha256 of the rest: "  # what its value begins with


@contextlib.contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """Yield the path of an empty file beside `target`, and rename it if the block succeeds.

    The temporary file is made at once, so that a folder that cannot be written to shows before the
    work. When the block raises, it is removed and `target` stays as it was. The folder of `target`
    is made where it is missing.

    Raises:
        OSError: writing, syncing or renaming failed; the message names `target`.
    """
    with temporary_file(target) as temporary:
        yield temporary
        publish(temporary, target)


@contextlib.contextmanager
def temporary_file(target: Path) -> Iterator[Path]:
    """Yield the path of an empty file beside `target`, and remove it unless it was published.

    Raises:
        OSError: as `atomic_path`.
    """
    with _temporary_name(target) as temporary:
        try:
            os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
            yield temporary
        except OSError as error:
            raise _naming(error, target, temporary) from error


def publish(temporary: Path, target: Path) -> None:
    """Put the file of `temporary_file` under its final name, its bytes and the name synced."""
    _sync(temporary)
    os.replace(temporary, target)
    sync_directory(target.parent)


@contextlib.contextmanager
def atomic_directory(target: Path) -> Iterator[Path]:
    """Yield a new directory beside `target`, and rename it if the block succeeds.

    A directory at `target` is replaced. When the block raises, the temporary directory is removed
    and `target` stays as it was. The block must sync the files that it writes.

    Raises:
        OSError: making, syncing or renaming failed.
    """
    with scratch_directory(target) as staging:
        yield staging
        sync_directory(staging)
        _put_in_place(staging, target)
        sync_directory(target.parent)


@contextlib.contextmanager
def scratch_directory(beside: Path) -> Iterator[Path]:
    """Yield a directory for the time of the block, in the folder of `beside` and named after it."""
    with _temporary_name(beside) as scratch:
        os.mkdir(scratch)
        yield scratch


@contextlib.contextmanager
def _temporary_name(target: Path) -> Iterator[Path]:
    """Yield a name beside `target` that no other writer has, and remove what is left there."""
    _make_folder(target.parent)
    _sweep(target.parent)
    path = target.with_name(temporary_name(target))
    in_use.add(path.name)
    try:
        yield path
    finally:
        remove(path)
        in_use.discard(path.name)


def _put_in_place(staging: Path, target: Path) -> None:
    """Rename a directory to `target`; one already there is moved aside first, then removed."""
    with _temporary_name(target) as old:
        if target.exists():
            os.rename(target, old)
        try:
            os.rename(staging, target)
        except OSError:
            if old.exists():
                os.rename(old, target)
            raise


def _make_folder(folder: Path) -> None:
    """Make a folder and its parents, and flush each new entry to the disk."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    with contextlib.suppress(FileExistsError):  # made meanwhile, or a file
        os.mkdir(folder)
    sync_directory(folder.parent)


@functools.cache
def _sweep(folder: Path) -> None:
    """Remove what killed writers left in a folder; each process looks once."""
    remove_abandoned(folder)


def remove_abandoned(folder: Path) -> None:
    """Remove what killed writers left in a folder, if it is there."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if is_abandoned(path):
            logger.info("removing %s, which a killed writer left", path)
            remove(path)


def remove(path: Path) -> None:
    """Remove a file, or a folder with its content; what fails is left to the next process."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
    except IsADirectoryError:
        shutil.rmtree(path, ignore_errors=True)
    except OSError as error:
        logger.debug("not removed: %s", error)


def remove_durably(paths: Iterable[Path]) -> list[Path]:
    """Remove those files and folders that exist, so that none reappears after a power loss.

    Returns:
        Those that were there.

    Raises:
        OSError: one cannot be removed.
    """
    there = [path for path in paths if os.path.lexists(path)]
    for path in there:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            os.unlink(path)
    for folder in {path.parent for path in there}:
        sync_directory(folder)
    return there


def give_name(path: Path, target: Path) -> None:
    """Rename a file in its folder; no other process may know it yet."""
    os.rename(path, target)


def _sync(path: Path) -> None:
    """Flush a file or a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:  # which knows the number of a file only
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        os.close(descriptor)


def sync_directory(directory: Path) -> None:
    """Flush a folder's entries to the disk, so that a rename in it survives a power loss."""
    _sync(directory)


def _naming(error: OSError, target: Path, temporary: Path) -> OSError:
    """Return a write error that names the final path: users know no temporary ones."""
    if type(error) is OSError and error.errno is None:  # h5py puts the number into the text
        return OSError(f"{error}: {str(target)!r}")
    if error.errno is not None and error.filename in (None, str(temporary), temporary):
        return OSError(error.errno, error.strerror, str(target))
    return error


def write_bytes(target: Path, content: bytes) -> None:
    """Write `content` to `target` atomically, see `atomic_path`."""
    with atomic_path(target) as temporary:
        temporary.write_bytes(content)


def write_json(target: Path, value: Any, *, sealed: bool = False) -> None:
    """Write `value` as indented JSON with a final newline; equal values give equal bytes.

    Args:
        target: the file.
        value: what to write.
        sealed: add the hash of an object's content to it, which `read_json` then checks.
    """
    if sealed:
        value = {key: content for key, content in value.items() if key != _SEAL}
        value[_SEAL] = _seal(value)
    write_bytes(target, _json_bytes(value))


def _json_bytes(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def _seal(value: dict[str, Any]) -> str:
    return _SEALED_BY + hashlib.sha256(_json_bytes(value)).hexdigest()


def reserve(path: Path, size: int) -> None:
    """Reserve a file's space on the disk, so that a full disk is noticed before the work.

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
    """Read a JSON object that this package wrote; its seal, where it has one, is checked.

    Raises:
        DataError: the file is missing, is not a JSON object, or was damaged or changed.
    """
    again = "remove it to have it made again"
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DataError("is missing", path=path) from None
    except ValueError as error:
        raise DataError(f"is not JSON ({error})", path=path, hint=again) from error
    if not isinstance(value, dict):
        raise DataError("is not a JSON object", path=path, hint=again)
    # By its name or its value: a flipped bit in one of them must not hide it.
    seals = [key for key in value if key == _SEAL or str(value[key]).startswith(_SEALED_BY)]
    if any(value.pop(key) != _seal(value) or key != _SEAL for key in seals):
        raise DataError("is damaged or was changed: its seal is broken", path=path, hint=again)
    return value


def sha256_of(path: Path) -> str:
    """Hash a file's bytes with SHA-256, as a hexadecimal string."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as handle:
        buffer = memoryview(bytearray(min(os.fstat(handle.fileno()).st_size, _BLOCK) or 1))
        while size := handle.readinto(buffer):
            digest.update(buffer[:size])
    return digest.hexdigest()


def sha256_in_background(path: Path) -> Future[str]:
    """Hash a file in a thread of its own, while the caller does something else.

    The thread holds nobody up: a process that ends before it has the hash ends at once.

    Returns:
        What will hold the hash, or the error of reading.
    """
    found: Future[str] = Future()

    def work() -> None:
        try:
            found.set_result(sha256_of(path))
        except BaseException as error:
            found.set_exception(error)

    threading.Thread(target=work, name="sha256", daemon=True).start()
    return found
