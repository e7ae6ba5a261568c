"""The export `npy`: the array, with a .tsv beside it that has the columns of `obs`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from virnucpro.files import atomic_path
from virnucpro.merge.exports.source import Export, blocks, columns_of
from virnucpro.merge.tables import write_table

__all__ = ["NPY"]


def _write(source: h5py.File, temporary: Path, target: Path) -> None:
    matrix, names = source["X"], columns_of(source)
    header = {"descr": matrix.dtype.str, "fortran_order": False, "shape": matrix.shape}
    with temporary.open("wb") as array, atomic_path(target.with_suffix(".tsv")) as table:
        np.lib.format.write_array_header_1_0(array, header)

        def rows() -> Iterator[tuple[Any, ...]]:
            for obs, embeddings in blocks(source):
                array.write(embeddings.tobytes())
                yield from zip(*(obs[name].tolist() for name in names), strict=True)

        write_table(table, names, rows())


NPY = Export(_write, suffix=".npy")
