"""Which query rows each attention program works on.

A tile is a block of query rows of one sequence. The list is exact: no program finds itself without
work, except in the padding that gives a step its fixed shape.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["attention_tiles", "tile_capacity"]


def tile_capacity(tokens: int, max_sequences: int, block: int) -> int:
    """Return the most tiles that a step of this shape can need.

    n tokens make ``ceil(n / block)`` tiles, at most ``(n + block - 1) / block``; summed over the
    sequences, with no tile for a token twice.

    Args:
        tokens: T, tokens of a step.
        max_sequences: most sequences in a step, filler included.
        block: query rows of a tile.
    """
    return min(tokens, (tokens + max_sequences * (block - 1)) // block)


def attention_tiles(cu_seqlens: NDArray[np.int32], block: int, capacity: int) -> NDArray[np.int32]:
    """List the tiles of packed sequences, dearest first.

    A tile costs as many key blocks as its sequence has. The longest sequences come first so that
    the short ones fill the device's last moments; ties keep the order of the batch.

    Args:
        cu_seqlens: [B+1] int32, non-decreasing bounds of the sequences in tokens.
        block: query rows of a tile.
        capacity: columns of the result, see `tile_capacity`.

    Returns:
        [3, capacity] int32: the sequence's first token, its length, and the tile's first row within
        it. Columns behind the last tile are zero: a length of 0 means no work.

    Raises:
        ValueError: the sequences need more tiles than `capacity`.
    """
    lengths = np.diff(cu_seqlens)
    order = np.argsort(-lengths, kind="stable")
    lengths, starts = lengths[order], cu_seqlens[:-1][order]
    counts = (lengths + block - 1) // block
    ends = np.cumsum(counts)
    used = int(ends[-1]) if len(ends) else 0
    if used > capacity:
        raise ValueError(f"{used} tiles of {block} rows do not fit a capacity of {capacity}")
    tiles = np.zeros((3, capacity), dtype=np.int32)
    tiles[0, :used] = np.repeat(starts, counts)
    tiles[1, :used] = np.repeat(lengths, counts)
    tiles[2, :used] = (np.arange(used) - np.repeat(ends - counts, counts)) * block
    return tiles
