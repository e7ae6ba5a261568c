"""Checksums of rows, so that any row of a segment can be checked without reading the others."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["row_checksums"]


def row_checksums(arrays: Sequence[NDArray[Any]]) -> NDArray[np.uint32]:
    """Return the CRC-32 of each row's bytes, those of one array after those of the other.

    Args:
        arrays: of n rows each, of any shape.

    Returns:
        [n].
    """
    found = [0] * len(arrays[0])
    for array in arrays:
        width = array[:1].nbytes
        content = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        found = [
            zlib.crc32(content[row * width : (row + 1) * width], before)
            for row, before in enumerate(found)
        ]
    return np.array(found, np.uint32)
