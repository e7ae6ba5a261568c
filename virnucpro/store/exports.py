"""Other formats of the merged embeddings, streamed from the finished embeddings.h5ad.

An export carries the first configured layer. Further layers are in embeddings.h5ad only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from virnucpro.errors import InputError
from virnucpro.files import atomic_path
from virnucpro.store.h5ad import OBS_COLUMNS
from virnucpro.store.tables import write_table

__all__ = ["EXPORTS", "check_exports", "export"]

_BLOCK = 8192
_TSV_COLUMNS = ("id", *(column for column in OBS_COLUMNS if column != "sample"))


def check_exports(exports: Mapping[str, Path], ids: Iterator[str]) -> None:
    """Check, before anything is written, that the exports can be made.

    Args:
        exports: kind -> file.
        ids: the ids of all records; read only where an export limits them.

    Raises:
        InputError: an unknown kind, or ids that cannot name an HDF5 dataset (`uniprot-h5`).
    """
    for kind, target in exports.items():
        if kind not in EXPORTS:
            raise InputError(
                f"unknown export {kind!r}", path=target, hint=f"one of {', '.join(EXPORTS)}"
            )
        if kind == "npy" and target.suffix != ".npy":
            raise InputError("the export npy needs a name that ends in .npy", path=target)
    if "uniprot-h5" not in exports:
        return
    unfit = [text for text in ids if text in ("", ".") or "/" in text or "\0" in text]
    if unfit:
        raise InputError(
            f"{len(unfit)} ids cannot name a dataset in an HDF5 file: "
            f"{', '.join(map(repr, unfit[:10]))}{', ...' if len(unfit) > 10 else ''}",
            path=exports["uniprot-h5"],
            hint="leave out the export uniprot-h5, or rename these records",
        )


def export(kind: str, h5ad: Path, target: Path) -> None:
    """Write one export.

    Args:
        kind: ``parquet`` (a row a record), ``npy`` (the array, and beside it a .tsv with the
            columns of `obs`) or ``uniprot-h5`` (a dataset a record, named by its id, as UniProt
            publishes per-protein embeddings).
        h5ad: the finished embeddings.h5ad.
        target: the file to write.

    Raises:
        InputError: an unknown kind.
        OSError: writing failed.
    """
    if kind not in EXPORTS:
        raise InputError(f"unknown export {kind!r}", hint=f"one of {', '.join(EXPORTS)}")
    with h5py.File(h5ad, "r") as source, atomic_path(target) as temporary:
        EXPORTS[kind](source, temporary, target)


def _blocks(source: h5py.File) -> Iterator[tuple[dict[str, Any], npt.NDArray[np.floating[Any]]]]:
    """Yield blocks of rows: the columns of `obs` and the embeddings [n, dim]."""
    matrix, obs = source["X"], source["obs"]
    for start in range(0, len(matrix), _BLOCK):
        rows = slice(start, start + _BLOCK)
        columns = {
            name: obs[name].asstr()[rows] if obs[name].dtype.kind == "O" else obs[name][rows]
            for name in ("_index", *_TSV_COLUMNS[1:])
        }
        columns["id"] = columns.pop("_index")
        yield columns, matrix[rows]


def _parquet(source: h5py.File, temporary: Path, target: Path) -> None:
    dim = source["X"].shape[1]
    value = pa.from_numpy_dtype(source["X"].dtype)
    schema = pa.schema(
        [
            ("id", pa.string()),
            ("key", pa.string()),
            ("length", pa.int32()),
            ("truncated", pa.bool_()),
            ("embedding", pa.list_(value, dim)),
        ]
    )
    with pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
        for obs, embeddings in _blocks(source):
            vectors = pa.FixedSizeListArray.from_arrays(pa.array(embeddings.reshape(-1)), dim)
            columns = [pa.array(obs[name]) for name in schema.names[:-1]]
            writer.write_batch(pa.record_batch([*columns, vectors], schema=schema))


def _npy(source: h5py.File, temporary: Path, target: Path) -> None:
    matrix = source["X"]
    header = {"descr": matrix.dtype.str, "fortran_order": False, "shape": matrix.shape}
    with temporary.open("wb") as array, atomic_path(target.with_suffix(".tsv")) as table:
        np.lib.format.write_array_header_1_0(array, header)

        def rows() -> Iterator[tuple[Any, ...]]:
            for obs, embeddings in _blocks(source):
                array.write(embeddings.tobytes())
                yield from zip(*(obs[name].tolist() for name in _TSV_COLUMNS), strict=True)

        write_table(table, _TSV_COLUMNS, rows())


def _uniprot_h5(source: h5py.File, temporary: Path, target: Path) -> None:
    with h5py.File(temporary, "w", locking="best-effort") as file:
        for obs, embeddings in _blocks(source):
            for name, embedding in zip(obs["id"], embeddings, strict=True):
                file.create_dataset(name, data=embedding, track_times=False)


EXPORTS: dict[str, Callable[[h5py.File, Path, Path], None]] = {
    "parquet": _parquet,
    "npy": _npy,
    "uniprot-h5": _uniprot_h5,
}
