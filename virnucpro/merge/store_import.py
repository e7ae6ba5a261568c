"""An embeddings.h5ad of this package into a store."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from virnucpro.errors import DataError, InputError
from virnucpro.formats import parse
from virnucpro.plan.items import key_array
from virnucpro.sequences.alphabet import KEY_BYTES
from virnucpro.store.request import Request
from virnucpro.store.segment import SEGMENT_ROWS
from virnucpro.store.writing import write_segment

__all__ = ["import_h5ad"]

logger = logging.getLogger(__name__)

_BLOCK_BYTES = 64 << 20


@dataclass(frozen=True)
class _Source:
    """The rows of a file that a store can take, each sequence once."""

    request: Request
    keys: npt.NDArray[np.uint8]  # [n, 16] increasing
    rows: npt.NDArray[np.int64]  # [n] of the file
    matrices: Sequence[npt.NDArray[Any]]  # [rows, dim], one a layer
    scores: npt.NDArray[np.float64] | None  # [rows] pseudo-perplexities


def import_h5ad(h5ad: Path, directory: Path) -> int:
    """Add the rows of an embeddings.h5ad to a store.

    Rows that were taken from a store as those of a close request are left out.

    Args:
        h5ad: the file.
        directory: the store, which is made where it is missing.

    Returns:
        The number of distinct sequences.

    Raises:
        InputError: the file cannot be read, or does not say what all its rows were computed with.
        DataError: it has other columns than it says, or the disk has not enough space.
        OSError: the store cannot be written to.
    """
    source = _read(h5ad)
    count = len(source.keys)
    for start in range(0, count, SEGMENT_ROWS):
        part = slice(start, start + SEGMENT_ROWS)
        blocks = _blocks(source, source.rows[part])
        shape = (len(source.matrices), source.matrices[0].shape[1])
        write_segment(directory, source.request, source.keys[part], shape, blocks)
    logger.info("%s: %d sequences are in the store, %s", h5ad, count, directory)
    return count


def _read(h5ad: Path) -> _Source:
    try:
        with h5py.File(h5ad, "r") as file:
            request = _read_request(file, h5ad)
            layers = [f"layers/layer_{layer}" for layer in request.layers[1:]]
            matrices = [_map(h5ad, file[name]) for name in ("X", *layers)]
            scored = "pseudo_perplexity" in request.arrays
            scores = file["obs/pseudo_perplexity"][:] if scored else None
            keys = key_array(file["obs/key"].asstr()[:].tolist())
            close = file.get("obs/from_close_request")
            rows = np.arange(len(keys)) if close is None else np.flatnonzero(~close[:])
    except OSError as error:
        raise InputError(f"cannot be read as HDF5 ({error})", path=h5ad) from error
    except (KeyError, ValueError) as error:
        raise DataError(f"is not an embeddings.h5ad of this package ({error})", path=h5ad) from None
    if any(matrix.dtype != request.output_dtype for matrix in matrices):
        raise DataError("has other numbers than it says", path=h5ad)
    _, first = np.unique(keys[rows].view(f"V{KEY_BYTES}").reshape(-1), return_index=True)
    return _Source(request, keys[rows][first], rows[first], matrices, scores)


def _read_request(file: h5py.File, h5ad: Path) -> Request:
    text = file.get("uns/virnucpro/request")
    if text is None:
        raise InputError(
            "does not say what all its rows were computed with",
            path=h5ad,
            hint="its shards were computed on several kinds of device, a step ran out of memory, "
            "or an earlier version wrote it: run the workflow again with `store` set",
        )
    return parse(Request, json.loads(text.asstr()[()]), h5ad)


def _map(h5ad: Path, matrix: h5py.Dataset) -> npt.NDArray[Any]:
    """Map a matrix into memory: h5py reads scattered rows a thousand times slower."""
    offset = matrix.id.get_offset()
    if offset is None:  # no rows
        return np.asarray(matrix[:])
    return np.asarray(np.memmap(h5ad, matrix.dtype, "r", offset, matrix.shape))


def _blocks(source: _Source, rows: npt.NDArray[np.int64]) -> Iterator[dict[str, npt.NDArray[Any]]]:
    """Yield the values of rows, in order."""
    width = sum(matrix[:1].nbytes for matrix in source.matrices)
    step = max(1, _BLOCK_BYTES // max(1, width))
    for start in range(0, len(rows), step):
        part = rows[start : start + step]
        values = {"embeddings": np.stack([matrix[part] for matrix in source.matrices], axis=1)}
        if source.scores is not None:
            values["pseudo_perplexity"] = source.scores[part]
        yield values
