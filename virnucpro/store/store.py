"""The stores of a run: read from all, written to the first that can be.

A store never fails a run. What is not whole is not used, and named once in a warning; rows that
turn out to be damaged, or whose segment was removed or compacted meanwhile, are looked for in the
other segments, and are else computed as if they were not known.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from virnucpro.errors import DataError, VirnucproError
from virnucpro.store.lookup import Places, find_keys
from virnucpro.store.request import ACCEPTED, Request
from virnucpro.store.segment import SEGMENT_ROWS, Segment, open_segment
from virnucpro.store.writing import write_segment

__all__ = ["Filled", "Known", "Store", "segment_paths"]

logger = logging.getLogger(__name__)

_NAME = re.compile(r"[0-9a-f]{32}")
_BLOCK_BYTES = 8 << 20

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Known:
    """Where the rows of some keys are in the stores."""

    request: Request
    keys: NDArray[np.uint8]  # [n, 16] increasing
    segments: list[Segment]
    places: Places  # in `segments`

    @property
    def found(self) -> NDArray[np.bool_]:
        """Which keys are known, [n]."""
        return self.places.found

    @property
    def close(self) -> NDArray[np.bool_]:
        """Which keys are known by a request that is close, not the same, [n]."""
        return _of_other_requests(self.request, self.segments)[self.places.segment]


@dataclass(frozen=True)
class Filled:
    """Which rows were filled from the stores."""

    filled: NDArray[np.bool_]  # [n]
    close: NDArray[np.bool_]  # [n] those of a request that is close, not the same


class Store:
    """One or more stores.

    Args:
        directories: their folders, in the order in which they are tried to be written to.
        accept: one of `ACCEPTED`.
    """

    def __init__(self, directories: Sequence[Path], accept: str = "same") -> None:
        if accept not in ACCEPTED:
            raise ValueError(f"unknown: {accept!r}")
        self.directories = tuple(directories)
        self._accept_close = accept == "close"
        self._unusable: set[Path] = set()
        self._looking_at_removed = False

    def segments(self, request: Request | None = None) -> list[Segment]:
        """Open the segments whose rows may be taken for a request, or all.

        Returns:
            The segments in the order in which they are looked into: the request's own first, and
            then by request and name. Of equal ones in several stores the first is taken.
        """
        found: dict[tuple[bool, str, str], Segment] = {}
        for directory in self.directories:
            only = None if request is None or self._accept_close else request.id
            for path in segment_paths(directory, only):
                rank = (request is not None and path.parent.name != request.id,)
                place = (*rank, path.parent.name, path.name)
                if path in self._unusable or place in found:
                    continue
                segment = self._open(path)
                if segment is None or not (request is None or _fits(segment.request, request)):
                    continue
                found[place] = segment
        return [found[place] for place in sorted(found)]

    def requests(self) -> list[Request]:
        """List the requests of which there are rows, in the order of their ids."""
        found = {segment.request.id: segment.request for segment in self.segments()}
        return [found[name] for name in sorted(found)]

    def look_up(self, request: Request, keys: NDArray[np.uint8]) -> Known:
        """Find the rows of keys.

        Args:
            request: what the rows are to be computed with.
            keys: [n, 16] increasing.
        """
        while True:
            self._looking_at_removed = False
            segments = self.segments(request)
            places = find_keys(keys, self._keys(segments))
            if not self._looking_at_removed:  # else the rows may be in a segment that is new
                return Known(request, keys, segments, places)

    def fill(self, known: Known, arrays: Arrays) -> Filled:
        """Copy known rows into arrays, each checked.

        Args:
            known: what `look_up` found.
            arrays: by the names of `Request.arrays`: [n, layers, dim] and [n]; rows that are not
                filled are left as they are.

        Returns:
            Which rows were filled; some may turn out not to be whole, or be gone meanwhile.
        """
        n = len(known.keys)
        filled, close = np.zeros(n, np.bool_), np.zeros(n, np.bool_)
        left = rows = np.flatnonzero(known.found)
        known = _part(known, left)
        while len(left):
            was_close = known.close
            whole = self._fill(known, left, arrays)
            filled[left[whole]] = True
            close[left[whole]] = was_close[whole]
            left = left[~whole]
            if len(left):  # each time, at least one segment less is looked into
                known = self.look_up(known.request, known.keys[~whole])
                left, known = left[known.found], _part(known, np.flatnonzero(known.found))
        if missing := np.count_nonzero(~filled[rows]):
            logger.warning("%d rows that the store had could not be taken from it", missing)
        return Filled(filled, close)

    def add(self, request: Request, keys: NDArray[np.uint8], arrays: Arrays) -> int:
        """Add rows to the first store that takes them; one that has no finite values is left out.

        Args:
            request: what the rows were computed with.
            keys: [n, 16] increasing.
            arrays: by the names of `Request.arrays`: [n, layers, dim] and [n].

        Returns:
            How many rows were added; a warning says why there were fewer than could be.
        """
        rows = np.flatnonzero(_finite(list(arrays.values())))
        added = 0
        for start in range(0, len(rows), SEGMENT_ROWS):
            part = rows[start : start + SEGMENT_ROWS]
            if not self._add(request, keys, arrays, part):
                break
            added += len(part)
        return added

    def _add(
        self, request: Request, keys: NDArray[np.uint8], arrays: Arrays, rows: NDArray[np.int64]
    ) -> bool:
        """Add some rows as one segment."""
        shape = arrays["embeddings"].shape[1:]
        problems = []
        for directory in self.directories:
            try:
                path = write_segment(directory, request, keys[rows], shape, _blocks(arrays, rows))
            except (VirnucproError, OSError) as error:
                problems.append(str(error))
            else:
                logger.info("%d rows are kept in the store: %s", len(rows), path)
                return True
        logger.warning("%d rows are kept in no store: %s", len(rows), "; ".join(problems))
        return False

    def _open(self, path: Path) -> Segment | None:
        try:
            return open_segment(path)
        except (VirnucproError, OSError) as error:
            self._leave_out(path, error)
            return None

    def _keys(self, segments: Sequence[Segment]) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        for number, segment in enumerate(segments):
            try:
                yield number, segment.keys()
            except (VirnucproError, OSError) as error:
                self._leave_out(segment.path, error)

    def _leave_out(self, path: Path, error: Exception) -> None:
        """Use a segment no more; name it, unless it was removed."""
        self._unusable.add(path)
        if isinstance(error, PermissionError) or os.path.lexists(path):
            logger.warning("store segment %s is not used: %s", path, error)
        else:
            self._looking_at_removed = True
            logger.info("store segment %s was removed meanwhile", path)

    def _fill(self, known: Known, target: NDArray[np.int64], arrays: Arrays) -> NDArray[np.bool_]:
        """Copy known rows, all of them found, into `target`; return which of them are whole."""
        whole = np.zeros(len(target), np.bool_)
        order = np.argsort(known.places.segment, kind="stable")
        numbers = known.places.segment[order]
        for chosen in np.split(order, np.flatnonzero(np.diff(numbers)) + 1):
            segment = known.segments[int(known.places.segment[chosen[0]])]
            rows = known.places.row[chosen].astype(np.int64)
            try:
                for part, values, good in segment.read(rows):
                    at = chosen[part][good]
                    for name, array in values.items():
                        arrays[name][target[at]] = array[good]
                    whole[at] = True
                if not whole[chosen].all():
                    count = np.count_nonzero(~whole[chosen])
                    raise DataError(f"{count} rows have another checksum", path=segment.path)
            except (VirnucproError, OSError) as error:
                self._leave_out(segment.path, error)
        return whole


def segment_paths(directory: Path, request: str | None = None) -> Iterator[Path]:
    """Yield the folders of a store's segments, of all requests or of one, by name.

    A folder that cannot be read has none; a warning says so unless it is not there.
    """
    for folder in _folders(directory) if request is None else [directory / request]:
        yield from _folders(folder)


def _folders(directory: Path) -> list[Path]:
    try:
        return sorted(path for path in directory.iterdir() if _NAME.fullmatch(path.name))
    except FileNotFoundError:
        return []
    except OSError as error:
        logger.warning("store %s is not used: %s", directory, error)
        return []


def _fits(found: Request, request: Request) -> bool:
    return found == request or found.is_close_to(request)


def _of_other_requests(request: Request, segments: Sequence[Segment]) -> NDArray[np.bool_]:
    """Tell of each segment whether it is of another request; the last entry is for none."""
    return np.array([*(segment.request != request for segment in segments), False])


def _part(known: Known, chosen: NDArray[np.int64]) -> Known:
    places = Places(known.places.segment[chosen], known.places.row[chosen])
    return Known(known.request, known.keys[chosen], known.segments, places)


def _finite(arrays: Sequence[NDArray[Any]]) -> NDArray[np.bool_]:
    """Return which rows hold finite values alone, [n], a block at a time."""
    finite = np.ones(len(arrays[0]), np.bool_)
    for array in arrays:
        step = max(1, _BLOCK_BYTES // max(1, array[:1].nbytes))
        for start in range(0, len(array), step):
            block = array[start : start + step]
            finite[start : start + step] &= np.isfinite(block.reshape(len(block), -1)).all(axis=1)
    return finite


def _blocks(arrays: Arrays, rows: NDArray[np.int64]) -> Iterator[dict[str, NDArray[Any]]]:
    step = max(1, _BLOCK_BYTES // max(1, arrays["embeddings"][:1].nbytes))
    for start in range(0, len(rows), step):
        part = rows[start : start + step]
        yield {name: array[part] for name, array in arrays.items()}
