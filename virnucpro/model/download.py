"""Downloads one large file over HTTP: shown while it comes, taken up where it broke off, whole.

What has come so far stands beside the target as ``.{target}.{tag}.part``; the tag is of the file's
version on the server (its ETag), so that parts of two versions are never joined. The target gets
its name when all bytes are on the disk.
"""

from __future__ import annotations

import fcntl
import hashlib
import http.client
import logging
import os
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import IO

from virnucpro.errors import DataError, VirnucproError
from virnucpro.files import sync_directory
from virnucpro.progress import Progress

__all__ = ["download"]

logger = logging.getLogger(__name__)

_STALLED_SECONDS = 60.0
_WAITS = (1.0, 5.0, 20.0)  # seconds before each further try
_BLOCK = 1 << 20


def download(address: str, target: Path, check: Callable[[Path], object]) -> None:
    """Download a file, unless it is there.

    A connection that breaks is tried again where it broke off, three times; what came stays for the
    next call.

    Args:
        address: ``http:`` or ``https:``.
        target: the file to write; its folder is made.
        check: reads the whole file and raises if it is not usable; that download is thrown away.

    Raises:
        OSError: the network failed (`urllib.error.URLError` and others).
        http.client.HTTPException: the server broke off or does not speak HTTP.
        DataError: the disk has not enough space.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    waits = iter(_WAITS)
    while not target.exists():
        try:
            _try(address, target, check)
        except (OSError, http.client.HTTPException) as error:
            wait = next(waits, None)
            if wait is None or not _is_passing(error):
                raise
            logger.warning("%s: %s; trying again in %.0f s", address, error, wait)
            time.sleep(wait)


def _is_passing(error: Exception) -> bool:
    """Say whether a failure may be over in a moment: not so a missing name or a refusal."""
    if isinstance(error, urllib.error.HTTPError):
        return error.code in (408, 425, 429) or error.code >= 500
    if isinstance(error, urllib.error.URLError):  # no connection at all
        return isinstance(error.reason, TimeoutError)
    return isinstance(error, ConnectionError | TimeoutError | http.client.HTTPException)


def _try(address: str, target: Path, check: Callable[[Path], object]) -> None:
    with _open(address) as response:
        size = _size(response)
        version = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
        part = _part(target, f"{address} {version} {size}")
        with part.open("ab") as handle:
            # A second process waits here, and then finds the file whole.
            fcntl.flock(handle, fcntl.LOCK_EX)
            if target.exists():
                part.unlink(missing_ok=True)  # opened, and so made anew, after the other was done
                return
            if not _is_at(part, handle):
                return  # the other threw its download away
            _check_space(target.parent, size - handle.tell())
            _receive(address, version, response, handle, size)
            handle.flush()
            os.fsync(handle.fileno())
            _finish(part, target, check)


def _is_at(path: Path, handle: IO[bytes]) -> bool:
    """Say whether a file that was opened is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(handle.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _size(response: http.client.HTTPResponse) -> int:
    """Return the bytes that are to come, 0 where the server does not say how many."""
    stated = response.headers.get("Content-Length") or ""
    return int(stated) if stated.isascii() and stated.isdigit() else 0


def _part(target: Path, version: str) -> Path:
    tag = hashlib.sha256(version.encode()).hexdigest()[:12]
    return target.with_name(f".{target.name}.{tag}.part")


def _open(address: str, **headers: str) -> http.client.HTTPResponse:
    request = urllib.request.Request(address, headers=headers)  # noqa: S310
    opened: http.client.HTTPResponse = urllib.request.urlopen(  # noqa: S310
        request, timeout=_STALLED_SECONDS
    )
    return opened


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DataError(
            f"no space: {needed:,} bytes are needed, {free:,} are free",
            path=folder,
            hint="make room, or give another folder",
        )


def _receive(
    address: str, version: str, response: http.client.HTTPResponse, handle: IO[bytes], size: int
) -> None:
    """Append what is missing; all of it where the server cannot give a part."""
    done = handle.tell()
    if done and done < size and version:
        rest = _open(address, Range=f"bytes={done}-", **{"If-Range": version})
        with rest:
            if rest.status == http.HTTPStatus.PARTIAL_CONTENT:
                logger.info("going on after %s of %s bytes", f"{done:,}", f"{size:,}")
                return _copy(rest, handle, size)
    if size and done == size:
        return None
    handle.truncate(0)
    return _copy(response, handle, size)


def _copy(response: http.client.HTTPResponse, handle: IO[bytes], size: int) -> None:
    done = handle.seek(0, os.SEEK_END)
    progress = Progress(size or None, "bytes", done=done)
    try:
        while block := response.read(_BLOCK):
            done += handle.write(block)
            progress.step(len(block))
    finally:
        progress.close()
    if not size:
        logger.info("%s bytes received; the server did not say how many there are", f"{done:,}")
    elif done != size:
        raise http.client.IncompleteRead(b"", size - done)


def _finish(part: Path, target: Path, check: Callable[[Path], object]) -> None:
    try:
        check(part)
    except VirnucproError:
        part.unlink(missing_ok=True)
        raise
    part.replace(target)
    sync_directory(target.parent)
