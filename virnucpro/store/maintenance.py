"""What is in a store, whether it is whole, and how to forget a request."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

from virnucpro.errors import DataError, InputError, VirnucproError
from virnucpro.store.request import Request
from virnucpro.store.segment import open_segment
from virnucpro.store.store import segment_paths
from virnucpro.store.writing import remove_segment

__all__ = ["Problem", "RequestStatus", "drop", "find_request", "read_request", "status", "verify"]


@dataclass(frozen=True)
class RequestStatus:
    """What a store has of a request."""

    request: Request
    segments: int
    rows: int  # a sequence in two segments counts twice
    bytes: int


@dataclass(frozen=True)
class Problem:
    """A segment that cannot be used, and why."""

    path: Path
    reason: str


def status(directory: Path) -> tuple[list[RequestStatus], list[Problem]]:
    """List what a store has, and the segments of which that cannot be told.

    Raises:
        InputError: there is no such folder.
    """
    _check(directory)
    found: dict[str, RequestStatus] = {}
    problems = []
    for path in segment_paths(directory):
        try:
            manifest = open_segment(path).manifest
        except (VirnucproError, OSError) as error:
            problems.append(Problem(path, _sentence(error)))
            continue
        before = found.get(path.parent.name, RequestStatus(manifest.request, 0, 0, 0))
        found[path.parent.name] = RequestStatus(
            before.request,
            before.segments + 1,
            before.rows + manifest.rows,
            before.bytes + manifest.bytes,
        )
    return [found[name] for name in sorted(found)], problems


def verify(directory: Path, *, remove: bool = False) -> tuple[int, list[Problem]]:
    """Check every byte of a store.

    Args:
        directory: the store.
        remove: take away what is damaged.

    Returns:
        The number of whole segments, and those that are not.

    Raises:
        InputError: there is no such folder.
        OSError: something damaged cannot be removed.
    """
    _check(directory)
    whole, problems = 0, []
    for path in segment_paths(directory):
        try:
            open_segment(path).verify()
        except (VirnucproError, OSError) as error:
            if path.exists():  # else it was removed meanwhile
                problems.append(Problem(path, _sentence(error)))
                # Another format and a failing disk are no damage.
                if remove and isinstance(error, DataError | FileNotFoundError):
                    remove_segment(path)
        else:
            whole += 1
    return whole, problems


def drop(directory: Path, request: str) -> int:
    """Take away all segments of a request.

    Args:
        directory: the store.
        request: the request's id, or how it begins.

    Returns:
        How many segments there were.

    Raises:
        InputError: there is no such request, or more than one.
        OSError: a segment cannot be removed.
    """
    paths = list(segment_paths(directory, find_request(directory, request)))
    for path in paths:
        remove_segment(path)
    return len(paths)


def find_request(directory: Path, request: str) -> str:
    """Return the id of the one request of a store that begins with `request`.

    Raises:
        InputError: there is no such request, or more than one.
    """
    _check(directory)
    ids = sorted({path.parent.name for path in segment_paths(directory)})
    found = [name for name in ids if name.startswith(request)]
    if len(found) != 1:
        raise InputError(
            f"has {len(found) or 'no'} requests that begin with {request!r}",
            path=directory,
            hint=f"it has {', '.join(found or ids) or 'none at all'}",
        )
    return found[0]


def read_request(directory: Path, request: str) -> Request:
    """Return the one request of a store whose id begins with `request`.

    Raises:
        InputError: there is no such request, or more than one.
        DataError: no segment of it can be read.
    """
    for path in segment_paths(directory, find_request(directory, request)):
        with contextlib.suppress(VirnucproError, OSError):
            return open_segment(path).request
    raise DataError(f"no segment of the request {request} can be read", path=directory)


def _check(directory: Path) -> None:
    if not directory.is_dir():
        raise InputError("is not a folder", path=directory, hint="give the folder of a store")


def _sentence(error: Exception) -> str:
    return str(error).partition("\n")[0]
