"""residues.h5: the representations of all residues of a sample in one file.

A dataset a layer, ``layer_{i}`` [residues, dim], holds the residues of all sequences that have an
embedding, end to end and each sequence once. Of the records, in the order of embeddings.h5ad, `id`
names them, and the residues of record r are the rows ``start[r]`` to ``end[r]``; records of one
sequence share theirs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import h5py
import numpy as np
import numpy.typing as npt

from virnucpro.errors import DataError
from virnucpro.store.receipts import all_finite

__all__ = ["ResiduesWriter"]

_BLOCK_BYTES = 64 << 20


class ResiduesWriter:
    """Writes residues.h5 as a stream: shard after shard, and the records in blocks.

    Args:
        path: the file to make; the caller moves it to its final name.
        records: number of records that will be written.
        residues: number of residues that will be written.
        dim: dimension of the representations.
        dtype: float32 or float16.
        layers: model layers, 1-based.
        facts: where the numbers come from; attributes of the file.
    """

    def __init__(
        self,
        path: Path,
        *,
        records: int,
        residues: int,
        dim: int,
        dtype: npt.DTypeLike,
        layers: Sequence[int],
        facts: Mapping[str, Any],
    ) -> None:
        self._path = path
        self._rows = self._residues = 0
        self._expected = (records, residues)
        self._file = h5py.File(path, "w", locking="best-effort")
        self._file.attrs.update(facts)
        names = h5py.string_dtype("utf-8")
        columns = {"id": names, "start": np.int64, "end": np.int64}
        self._columns = {
            name: self._file.create_dataset(name, (records,), dtype, track_times=False)
            for name, dtype in columns.items()
        }
        self._layers = [
            self._file.create_dataset(f"layer_{layer}", (residues, dim), dtype, track_times=False)
            for layer in layers
        ]

    def write_records(self, ids: Sequence[str], places: npt.NDArray[np.int64]) -> None:
        """Append records.

        Args:
            ids: [n] their ids.
            places: [n, 2] where their residues start and end.
        """
        rows = slice(self._rows, self._rows + len(ids))
        for name, values in zip(self._columns, (ids, *places.T), strict=True):
            self._columns[name][rows] = values
        self._rows = rows.stop

    def write_shard(
        self,
        array: npt.NDArray[np.floating[Any]],
        offsets: npt.NDArray[np.int64],
        left_out: Sequence[int],
    ) -> None:
        """Append the residues of a shard's sequences.

        Args:
            array: [residues, layers, dim] of the shard.
            offsets: [sequences + 1] where each sequence's residues start.
            left_out: sequences without an embedding, which are skipped.

        Raises:
            DataError: a value is not finite.
        """
        block = max(_BLOCK_BYTES // max(array[:1].nbytes, 1), 1)
        skipped = sorted(left_out)
        starts = [0, *(int(offsets[row + 1]) for row in skipped)]
        ends = [*(int(offsets[row]) for row in skipped), int(offsets[-1])]
        for start, end in zip(starts, ends, strict=True):
            for first in range(start, end, block):
                part = array[first : min(first + block, end)]
                if not all_finite(part):
                    raise DataError(
                        "a residue is not finite, and the receipt does not list its sequence as "
                        "quarantined",
                        path=getattr(array, "filename", None),
                        hint="remove the shard's arrays and receipt and run again",
                    )
                rows = slice(self._residues, self._residues + len(part))
                for index, layer in enumerate(self._layers):
                    layer[rows] = part[:, index]
                self._residues = rows.stop

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
        if kind is None and (self._rows, self._residues) != self._expected:
            raise DataError(
                f"{self._rows} records with {self._residues} residues were written, expected "
                f"{self._expected[0]} with {self._expected[1]}: the shards changed meanwhile",
                path=self._path,
            )
