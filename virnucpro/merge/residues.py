"""residues.h5: the representations of all residues of a sample in one file.

A dataset a layer, ``layer_{i}`` [residues, dim], holds the residues of all sequences that have an
embedding, end to end and each sequence once. Of the records, in the order of embeddings.h5ad, `id`
names them, and the residues of record r are the rows ``start[r]`` to ``end[r]``; records of one
sequence share theirs.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from virnucpro.errors import DataError
from virnucpro.formats import extra_path
from virnucpro.merge.arrays import all_finite, open_array
from virnucpro.merge.shards import Shards
from virnucpro.plan.plan import read_plan
from virnucpro.progress import Progress

__all__ = ["write_residues"]

_BLOCK_BYTES = 64 << 20
_BLOCK_ROWS = 1 << 15
_FACTS = ("sample", "notice", "model", "weights_sha256", "compute_dtype")
_COLUMNS = {"id": "_index", "start": "residues_start", "end": "residues_end"}


def write_residues(path: Path, h5ad: Path, shards: Shards, *, sample: str) -> None:
    """Write residues.h5 as a stream, shard after shard; memory does not grow with it.

    Args:
        path: the file to make; the caller moves it to its final name.
        h5ad: the finished embeddings.h5ad, whose `obs` says where each record's residues are.
        shards: of the sample, verified, with residues.
        sample: its name, for the bar.

    Raises:
        DataError: a residue is not finite, or there are not as many as the plans say.
    """
    receipt, total = shards.receipts[0], shards.residues or 0
    progress = Progress(total, "residues", what=f"{sample}: writing")
    with (
        closing(progress),
        h5py.File(path, "w", locking="best-effort") as file,
        h5py.File(h5ad, "r") as merged,
    ):
        facts = merged["uns/virnucpro"]
        file.attrs.update({name: facts[name][()] for name in _FACTS if name in facts})
        for name, column in _COLUMNS.items():
            _copy_column(merged["obs"][column], file, name)
        shape = (total, receipt.dimension)
        layers = [
            file.create_dataset(f"layer_{layer}", shape, receipt.dtype, track_times=False)
            for layer in receipt.layers
        ]
        place = 0
        for part in _parts(shards):
            for index, layer in enumerate(layers):
                layer[place : place + len(part)] = part[:, index]
            place += len(part)
            progress.step(len(part))
        if place != total:
            raise DataError(f"{place} residues were written, {total} are planned", path=path)


def _parts(shards: Shards) -> Iterator[npt.NDArray[np.floating[Any]]]:
    """Yield the residues of all sequences with an embedding, [n, layers, dim], in blocks."""
    for name, npy, left_out in zip(shards.names, shards.arrays, shards.quarantined, strict=True):
        offsets = read_plan(shards.plans_dir / f"{name}.parquet").residue_offsets
        array = open_array(extra_path(npy, "residues"))
        for part in _blocks(array, offsets, left_out):
            if not all_finite(part):
                raise DataError(
                    f"shard {name}: a residue is not finite, and the receipt does not list its "
                    "sequence as quarantined",
                    hint="remove the shard's arrays and receipt and run again",
                )
            yield part


def _copy_column(source: h5py.Dataset, file: h5py.File, name: str) -> None:
    """Copy a column of `obs` in blocks."""
    target = file.create_dataset(name, source.shape, source.dtype, track_times=False)
    for start in range(0, len(source), _BLOCK_ROWS):
        rows = slice(start, start + _BLOCK_ROWS)
        target[rows] = source[rows]


def _blocks(
    array: npt.NDArray[np.floating[Any]], offsets: npt.NDArray[np.int64], left_out: Collection[int]
) -> Iterator[npt.NDArray[np.floating[Any]]]:
    """Yield the residues of a shard's sequences in blocks, skipping some sequences.

    Args:
        array: [residues, layers, dim] of the shard.
        offsets: [sequences + 1] where each sequence's residues start.
        left_out: rows of the shard.
    """
    size = max(_BLOCK_BYTES // max(array[:1].nbytes, 1), 1)
    skipped = sorted(left_out)
    starts = [0, *(int(offsets[row + 1]) for row in skipped)]
    ends = [*(int(offsets[row]) for row in skipped), int(offsets[-1])]
    for start, end in zip(starts, ends, strict=True):
        for first in range(start, end, size):
            yield array[first : min(first + size, end)]
