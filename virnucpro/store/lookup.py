"""Finds many keys in many segments: both sides are sorted, and read in one direction.

Keys of several segments are gathered and sorted together, a million at a time, and then searched
for among the keys that are asked for. So the time depends on the number of keys and hardly on that
of segments.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from virnucpro.plan.items import key_halves

__all__ = ["Places", "find_keys"]

_BATCH = 1 << 20  # keys that are searched for at a time, or those of one segment
_UNKNOWN = -1

Keys = NDArray[np.uint8]  # [n, 16]


@dataclass(frozen=True)
class Places:
    """Where keys were found."""

    segment: NDArray[np.int32]  # [n] numbers of segments; -1 where a key was not found
    row: NDArray[np.int32]  # [n] rows of the segments

    @property
    def found(self) -> NDArray[np.bool_]:
        """Which keys were found, [n]."""
        found: NDArray[np.bool_] = self.segment != _UNKNOWN
        return found


class _Halves(NamedTuple):
    """Keys as `key_halves` returns them."""

    high: NDArray[np.uint64]  # [n]
    low: NDArray[np.uint64]  # [n]


def find_keys(keys: Keys, segments: Iterable[tuple[int, Keys]]) -> Places:
    """Find each key's first segment, and its row there.

    Args:
        keys: [n, 16] increasing.
        segments: number and increasing keys of each; of those that have a key, the first is taken.
    """
    n = len(keys)
    places = Places(np.full(n, _UNKNOWN, np.int32), np.zeros(n, np.int32))
    queries = _Halves(*key_halves(keys))
    for numbers, rows, batch in _batches(segments):
        order = np.argsort(batch.high)  # in which equal ones may change places
        position = _search(queries, _Halves(batch.high[order], batch.low[order]))
        hits = np.flatnonzero(position >= 0)
        hits = hits[places.segment[position[hits]] == _UNKNOWN]
        position, source = _first(position[hits], order[hits])
        places.segment[position], places.row[position] = numbers[source], rows[source]
    return places


def _first(
    position: NDArray[np.int64], source: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Of sources that have one position keep the first; few have, so mostly there is no sorting."""
    if (np.diff(position) > 0).all():
        return position, source
    order = np.lexsort((source, position))
    position, source = position[order], source[order]
    first = np.diff(position, prepend=-1) > 0
    return position[first], source[first]


def _batches(
    segments: Iterable[tuple[int, Keys]],
) -> Iterator[tuple[NDArray[np.int32], NDArray[np.int32], _Halves]]:
    """Yield the keys of some segments at a time, with their segments' numbers and their rows."""
    waiting: list[tuple[int, Keys]] = []
    size = 0
    for number, keys in segments:
        waiting.append((number, keys))
        size += len(keys)
        if size >= _BATCH:
            yield _gather(waiting)
            waiting, size = [], 0
    if size:
        yield _gather(waiting)


def _gather(
    parts: list[tuple[int, Keys]],
) -> tuple[NDArray[np.int32], NDArray[np.int32], _Halves]:
    lengths = [len(keys) for _, keys in parts]
    numbers = np.repeat(np.array([number for number, _ in parts], np.int32), lengths)
    rows = np.concatenate([np.arange(length, dtype=np.int32) for length in lengths])
    return numbers, rows, _Halves(*key_halves(np.concatenate([keys for _, keys in parts])))


def _search(queries: _Halves, keys: _Halves) -> NDArray[np.int64]:
    """Return the position of each key among the queries, [keys]; -1 where it is none of them."""
    position = np.searchsorted(queries.high, keys.high)
    # Different keys may have one high half: go on through those that have it.
    while True:
        inside = np.flatnonzero(position < len(queries.high))
        at = position[inside]
        behind = (queries.high[at] == keys.high[inside]) & (queries.low[at] < keys.low[inside])
        if not behind.any():
            break
        position[inside[behind]] += 1
    equal = (queries.high[at] == keys.high[inside]) & (queries.low[at] == keys.low[inside])
    found = np.full(len(keys.high), -1, np.int64)
    found[inside[equal]] = at[equal]
    return found
