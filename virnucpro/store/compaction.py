"""Compaction: many small segments become few large ones, whoever else uses the store meanwhile.

The order of the work: check every byte of the small segments, write the merged ones, and only then
take away those that were merged. So at each moment every row is in a whole segment; what is killed
leaves rows that are stored twice, which the next compaction finds. Another compaction takes away
only what it has in segments of its own, so two at once lose nothing either.
"""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from virnucpro.errors import DataError, VirnucproError
from virnucpro.plan.items import key_halves
from virnucpro.store.segment import SEGMENT_ROWS, Segment, open_segment
from virnucpro.store.store import segment_paths
from virnucpro.store.writing import remove_segment, write_segment

__all__ = ["Compaction", "compact"]

logger = logging.getLogger(__name__)

_BLOCK_BYTES = 64 << 20
_MERGED_ROWS = 16 * SEGMENT_ROWS  # at once, at most: some 50 bytes of memory each


@dataclass(frozen=True)
class Compaction:
    """What a compaction did."""

    merged: int  # segments that are gone
    written: int  # segments in their place
    rows: int  # of these
    duplicates: int  # rows that were there more than once


@dataclass(frozen=True)
class _Rows:
    """The rows of some segments in the order of their keys, each key once."""

    keys: NDArray[np.uint8]  # [n, 16]
    segment: NDArray[np.int32]  # [n] numbers of segments
    row: NDArray[np.int64]  # [n]


def compact(directory: Path) -> Compaction:
    """Merge the small segments of each request of a store.

    Raises:
        DataError: a segment changed while it was merged, or the disk has not enough space.
        OSError: the store cannot be written to.
    """
    done = [_merge_unless_gone(directory, group) for group in _groups(directory)]
    names = ("merged", "written", "rows", "duplicates")
    return Compaction(*(sum(getattr(each, name) for each in done) for name in names))


def _groups(directory: Path) -> Iterator[list[Segment]]:
    """Yield small and whole segments of one request, at least two, and not too many at once."""
    group: list[Segment] = []
    for segment in _small_segments(directory):
        rows = sum(each.manifest.rows for each in group) + segment.manifest.rows
        if group and (group[0].request != segment.request or rows > _MERGED_ROWS):
            if len(group) > 1:
                yield group
            group = []
        group.append(segment)
    if len(group) > 1:
        yield group


def _small_segments(directory: Path) -> Iterator[Segment]:
    """Yield the segments that are less than half full, by request and name."""
    for path in list(segment_paths(directory)):
        try:
            segment = open_segment(path)
            if 2 * segment.manifest.rows >= SEGMENT_ROWS:
                continue
            segment.verify()
        except (VirnucproError, OSError) as error:
            logger.warning("store segment %s is left as it is: %s", path, error)
        else:
            yield segment


def _merge_unless_gone(directory: Path, segments: Sequence[Segment]) -> Compaction:
    """Merge some segments; where another process has taken one away meanwhile, leave them to it."""
    try:
        return _merge(directory, segments)
    except OSError:
        if all(os.path.lexists(segment.path) for segment in segments):
            raise
        logger.info("%s is compacted by another process", segments[0].path.parent)
        return Compaction(0, 0, 0, 0)


def _merge(directory: Path, segments: Sequence[Segment]) -> Compaction:
    """Write the rows of some segments, which are of one request, as few segments."""
    request, shape = segments[0].request, segments[0].manifest.shape
    rows = _ordered(segments)
    count = -(-len(rows.keys) // SEGMENT_ROWS)
    bounds = [number * len(rows.keys) // count for number in range(count + 1)]
    written = {
        write_segment(directory, request, rows.keys[low:high], shape, _blocks(segments, rows, part))
        for low, high in itertools.pairwise(bounds)
        for part in [slice(low, high)]
    }
    merged = [segment.path for segment in segments if segment.path not in written]
    for path in merged:
        remove_segment(path)
    stored = sum(segment.manifest.rows for segment in segments)
    logger.info("%s: %d segments became %d", directory / request.id, len(segments), len(written))
    return Compaction(len(merged), len(written), len(rows.keys), stored - len(rows.keys))


def _ordered(segments: Sequence[Segment]) -> _Rows:
    """Bring the rows of some segments into the order of their keys; of equal ones, the first."""
    keys = np.concatenate([segment.keys() for segment in segments])
    lengths = [segment.manifest.rows for segment in segments]
    number = np.repeat(np.arange(len(segments), dtype=np.int32), lengths)
    row = np.concatenate([np.arange(length) for length in lengths])
    high, low = key_halves(keys)
    order = np.lexsort((low, high))
    high, low = high[order], low[order]
    first = np.concatenate([[True], (high[1:] != high[:-1]) | (low[1:] != low[:-1])])
    order = order[first]
    return _Rows(keys[order], number[order], row[order])


def _blocks(
    segments: Sequence[Segment], rows: _Rows, part: slice
) -> Iterator[dict[str, NDArray[Any]]]:
    """Yield the values of a part of the rows, in order."""
    request, first = segments[0].request, segments[0]
    row_bytes = first.manifest.bytes // first.manifest.rows
    step = max(1, _BLOCK_BYTES // row_bytes)
    for start in range(part.start, part.stop, step):
        stop = min(start + step, part.stop)
        values = {
            name: np.empty((stop - start, *first.array_shape(name)), dtype)
            for name, dtype in request.arrays.items()
        }
        number, row = rows.segment[start:stop], rows.row[start:stop]
        for segment in np.unique(number).tolist():
            places = np.flatnonzero(number == segment)
            _copy(segments[segment], row[places], places, values)
        yield values


def _copy(
    segment: Segment,
    rows: NDArray[np.int64],
    places: NDArray[np.int64],
    values: dict[str, NDArray[Any]],
) -> None:
    for part, found, whole in segment.read(rows):
        if not whole.all():
            raise DataError("was damaged while it was merged", path=segment.path)
        for name, array in found.items():
            values[name][places[part]] = array
