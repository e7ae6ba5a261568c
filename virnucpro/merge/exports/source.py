"""What the exports share: their description, and reading embeddings.h5ad in blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

__all__ = ["Export", "blocks", "columns_of", "obs_blocks"]

_BLOCK = 8192


@dataclass(frozen=True)
class Export:
    """A format that embeddings.h5ad can be exported to."""

    write: Callable[[h5py.File, Path, Path], None]  # embeddings.h5ad, temporary path, final path
    directory: bool = False  # whether it is a folder
    suffix: str | None = None  # that the name has to have
    poolings: tuple[str, ...] | None = None  # whose vectors it can hold; None for all


def blocks(source: h5py.File) -> Iterator[tuple[dict[str, Any], npt.NDArray[np.floating[Any]]]]:
    """Yield blocks of rows: the columns of `obs` and the embeddings [n, dim]."""
    for rows, columns in obs_blocks(source):
        yield columns, source["X"][rows]


def obs_blocks(source: h5py.File) -> Iterator[tuple[slice, dict[str, Any]]]:
    """Yield blocks of rows: which they are, and the columns of `obs`."""
    obs, names = source["obs"], columns_of(source)
    for start in range(0, len(source["X"]), _BLOCK):
        rows = slice(start, start + _BLOCK)
        columns = {
            name: obs[name].asstr()[rows] if obs[name].dtype.kind == "O" else obs[name][rows]
            for name in ("_index", *names[1:])
        }
        columns["id"] = columns.pop("_index")
        yield rows, columns


def columns_of(source: h5py.File) -> list[str]:
    """Name the columns of a table of the records: the id, then those of `obs`."""
    return ["id", *(name for name in source["obs"].attrs["column-order"] if name != "sample")]
