"""Items: the parts of sequences that are computed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from virnucpro.plan.parameters import PlanParameters
from virnucpro.sequences.alphabet import KEY_BYTES

__all__ = [
    "Items",
    "count_windows",
    "cut_items",
    "increasing",
    "key_array",
    "key_halves",
    "owned_spans",
]


class Items(NamedTuple):
    """Items of a shard, in the order of their rows and starts."""

    row: NDArray[np.int64]  # [items] numbers of the sequences in the shard
    start: NDArray[np.int64]  # [items] first residue, from 0
    end: NDArray[np.int64]  # [items] one past the last residue
    truncated: NDArray[np.bool_]  # [items] whether the rest of the sequence is not computed


def count_windows(
    lengths: NDArray[np.int64], max_sequence_length: int, window_overlap: int
) -> NDArray[np.int64]:
    """Count the windows of each sequence: the fewest with this length and overlap.

    Args:
        lengths: [sequences] residues, at least 1 each.
        max_sequence_length: residues of a window; a sequence that is not longer is one item.
        window_overlap: residues that neighbouring windows share at least.

    Returns:
        [sequences].
    """
    beyond = np.maximum(lengths - max_sequence_length, 0)
    windows: NDArray[np.int64] = 1 - (-beyond // (max_sequence_length - window_overlap))
    return windows


def cut_items(lengths: NDArray[np.int64], parameters: PlanParameters) -> Items:
    """Make the items of sequences.

    All windows have the maximum length, and they are spread evenly: window i of n starts at residue
    ``i * (length - max_sequence_length) // (n - 1)``. So every residue has as much context as n
    windows can give it, and windows pack well.

    Args:
        lengths: [sequences] residues, at least 1 each.
        parameters: what becomes of those that are too long.
    """
    max_sequence_length = parameters.max_sequence_length
    if parameters.long_sequences == "truncate":
        row = np.arange(len(lengths))
        end = np.minimum(lengths, max_sequence_length)
        return Items(row, np.zeros_like(row), end, lengths > max_sequence_length)
    windows = count_windows(lengths, max_sequence_length, parameters.window_overlap)
    row = np.repeat(np.arange(len(lengths)), windows)
    number = np.arange(row.size) - np.repeat(np.cumsum(windows) - windows, windows)
    beyond = np.maximum(lengths - max_sequence_length, 0)[row]
    start = number * beyond // np.maximum(windows[row] - 1, 1)
    end = np.minimum(start + max_sequence_length, lengths[row])
    return Items(row, start, end, np.zeros(row.size, np.bool_))


def owned_spans(
    row: NDArray[Any], start: NDArray[Any], end: NDArray[Any]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the residues that each item stands for, so that each residue is taken once.

    Where windows overlap, a residue is taken from the one in which it stands farthest from an edge,
    and from the first of two that are equal.

    Args:
        row: [items] the items' sequences, in any order.
        start: [items] first residues.
        end: [items] one past the last residues.

    Returns:
        [items] the first of these residues and one past the last, counted in the sequence.
    """
    order = np.lexsort((start, row))
    rows = row[order]
    first, last = start[order].astype(np.int64), end[order].astype(np.int64)
    inner = np.flatnonzero(rows[1:] == rows[:-1])  # an item and the one after it, of one sequence
    borders = (last[inner] + first[inner + 1] + 1) // 2
    last[inner] = borders
    first[inner + 1] = borders
    spans = np.empty((2, len(order)), np.int64)
    spans[:, order] = first, last
    return spans[0], spans[1]


def key_array(keys: Sequence[str] | NDArray[Any]) -> NDArray[np.uint8]:
    """Turn hexadecimal keys into bytes, uint8 [sequences, 16]; such an array passes unchanged.

    Raises:
        ValueError: a key is not 32 hexadecimal digits.
    """
    if isinstance(keys, np.ndarray):
        if keys.dtype != np.uint8 or keys.ndim != 2 or keys.shape[1] != KEY_BYTES:
            raise ValueError(f"keys are {keys.dtype} {keys.shape}, expected uint8 [, {KEY_BYTES}]")
        return keys
    joined = bytes.fromhex("".join(keys))
    if set(map(len, keys)) - {2 * KEY_BYTES}:
        raise ValueError(f"a key is not {2 * KEY_BYTES} hexadecimal digits")
    return np.frombuffer(joined, np.uint8).reshape(-1, KEY_BYTES)


def key_halves(keys: NDArray[np.uint8]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Return keys, [n, 16], as two numbers each, in whose order they are sorted as their bytes."""
    high, low = np.ascontiguousarray(keys).view(">u8").reshape(-1, KEY_BYTES // 8).T
    return high.astype(np.uint64), low.astype(np.uint64)


def increasing(keys: NDArray[np.uint8]) -> bool:
    """Tell whether keys, [sequences, 16], are sorted as bytes and distinct."""
    high, low = key_halves(keys)
    above = (high[1:] > high[:-1]) | ((high[1:] == high[:-1]) & (low[1:] > low[:-1]))
    return bool(above.all())
