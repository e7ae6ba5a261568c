"""First-Fit Decreasing on the histogram of lengths: the same bins as item by item, in milliseconds.

First-Fit Decreasing (Johnson 1973, "Near-optimal bin packing algorithms") takes the items longest
first and puts each into the first bin that it fits. Item by item that is quadratic: a million
proteins take minutes. But items of one length are interchangeable, and bins with the same space
left and standing next to each other are too. So the bins are kept as an ordered list of *groups*
of equal neighbours, and all items of one length are placed at once: `space // length` copies into
every bin of every group that fits, left to right. Only the last group that receives items can be
left in part, and is split there. The steps are

    sort (stable, so ties keep their order) -> histogram -> placements of groups -> batch order

This module needs NumPy only, so that planning does not have to load torch.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "batch_offsets",
    "first_fit_decreasing",
    "longest_first",
    "place_histogram",
]

IntArray = NDArray[np.int64]

# Neighbouring bins of equal content: the space left in each, the first bin, how many they are, and
# the items that each holds ...
_Group = tuple[int, int, int, int]
# ... and a placement: the first bin, how many, the items put into each, and those it held before.
# Placements follow the sorted items.
_Placement = tuple[int, int, int, int]


def first_fit_decreasing(
    tokens: NDArray[Any], budget: int
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Pack items into batches of at most `budget` tokens by First-Fit Decreasing.

    Args:
        tokens: [items] tokens that each item costs; any integer type.
        budget: tokens that a batch holds.

    Returns:
        `order`, [items] int64: the item numbers in batch order, batch 0 first, within a batch in
        the order of placement (longest first); and `batch`, [items] int32: the batch number of
        each entry of `order`, never decreasing. Of items with equal tokens, the lower number is
        placed first.

    Raises:
        ValueError: `tokens` is not a list of whole numbers, an item has fewer than 1 token, or
            more than the budget.
    """
    tokens = np.asarray(tokens)
    if tokens.ndim != 1:
        raise ValueError(f"tokens has {tokens.ndim} dimensions, expected 1")
    if not tokens.size:
        return np.empty(0, np.int64), np.empty(0, np.int32)
    if tokens.dtype.kind not in "iu":
        raise ValueError(f"tokens are {tokens.dtype}, expected whole numbers")
    shortest, longest = int(tokens.min()), int(tokens.max())
    if shortest < 1:
        raise ValueError(f"item {int(tokens.argmin())} has {shortest} tokens, expected at least 1")
    if longest > budget:
        raise ValueError(
            f"item {int(tokens.argmax())} has {longest} tokens, more than the budget of {budget}"
        )
    placements = place_histogram(np.bincount(tokens), budget)
    return _batch_order(longest_first(tokens), placements)


def longest_first(lengths: NDArray[Any]) -> NDArray[np.int64]:
    """Return the item numbers, longest first; ties keep their order.

    Args:
        lengths: [items] whole numbers, not negative.

    Returns:
        [items] int64.
    """
    if not lengths.size:
        return np.empty(0, np.int64)
    longest = int(lengths.max())
    # NumPy's stable sort is a radix sort for 16-bit integers, ten times faster than for wider ones.
    narrow = np.uint16 if longest < 1 << 16 else np.int64
    return np.argsort((longest - lengths).astype(narrow), kind="stable")


def batch_offsets(batch: NDArray[Any]) -> NDArray[np.int64]:
    """Return where each batch starts: [batches + 1] int64, from sorted batch numbers 0, 1, ..."""
    batches = int(batch[-1]) + 1 if batch.size else 0
    return np.searchsorted(batch, np.arange(batches + 1)).astype(np.int64)


def place_histogram(histogram: IntArray, budget: int) -> IntArray:
    """Decide which lengths go to which bins.

    Args:
        histogram: number of items of each length, up to the longest; at least one item.
        budget: what a bin holds, at least the longest length.

    Returns:
        The placements, [placements, 4]: first bin, number of bins, items put into each, items that
        each held before; they follow the items, longest first.
    """
    lengths = np.flatnonzero(histogram)[::-1]
    shortest = int(lengths[-1])
    groups: list[_Group] = []
    space = np.empty(0, np.int64)  # of each group once more: numpy looks through many at once
    placements: list[_Placement] = []
    opened = 0
    compact_at = 256
    for length, left in zip(lengths.tolist(), histogram[lengths].tolist(), strict=True):
        # Few groups have room for a length, three on average: no work for numpy.
        for at in np.flatnonzero(space >= length).tolist():
            room, first, bins, items = groups[at]
            copies = room // length
            if copies * bins > left:
                placed, parts = _split(groups[at], length, left)
                groups[at : at + 1] = parts
                space = np.concatenate([space[:at], _spaces(parts), space[at + 1 :]])
                placements += placed
                left = 0
                break
            groups[at] = (room - copies * length, first, bins, items + copies)
            space[at] -= copies * length
            placements.append((first, bins, copies, items))
            left -= copies * bins
            if not left:
                break
        if left:
            bins = -(-left // (budget // length))
            placed, parts = _split((budget, opened, bins, 0), length, left)
            groups += parts
            space = np.concatenate([space, _spaces(parts)])
            placements += placed
            opened += bins
        if len(groups) > compact_at:
            useful = np.flatnonzero(space >= shortest)
            groups = [groups[at] for at in useful.tolist()]
            space = space[useful]
            compact_at = 2 * len(groups) + 256
    return np.array(placements, np.int64)


def _spaces(groups: list[_Group]) -> list[int]:
    return [group[0] for group in groups]


def _split(group: _Group, length: int, left: int) -> tuple[list[_Placement], list[_Group]]:
    """Put `left` items, no more than fit, into a group: placements, and the groups it becomes."""
    space, first, bins, items = group
    copies = space // length
    full, rest = divmod(left, copies)
    partial = int(rest > 0)
    placed: list[_Placement] = []
    parts: list[_Group] = []
    for number, count in ((full, copies), (partial, rest), (bins - full - partial, 0)):
        if number:
            parts.append((space - count * length, first, number, items + count))
            if count:
                placed.append((first, number, count, items))
            first += number
    return placed, parts


def _batch_order(
    by_length: NDArray[np.int64], placements: IntArray
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Scatter the sorted items to their places in batch order.

    A *cell* is what one placement puts into one bin: neighbours both in the sorted items and in
    the result.
    """
    first, bins, copies, items = placements.T
    batches = int((first + bins).max())
    steps = np.zeros(batches + 1, np.int64)
    np.add.at(steps, first, copies)
    np.add.at(steps, first + bins, -copies)
    in_batch = np.cumsum(steps[:-1])
    batch_start = np.cumsum(in_batch) - in_batch

    cell_from = np.cumsum(bins) - bins
    cell_copies = np.repeat(copies, bins)
    cell_batch = np.repeat(first - cell_from, bins)
    cell_batch += np.arange(cell_batch.size)
    shift = batch_start[cell_batch]
    shift += np.repeat(items, bins)
    shift -= np.cumsum(cell_copies) - cell_copies
    place = np.repeat(shift, cell_copies)
    place += np.arange(place.size)

    order = np.empty_like(by_length)
    order[place] = by_length
    return order, np.repeat(np.arange(batches, dtype=np.int32), in_batch)
