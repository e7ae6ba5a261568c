"""Other formats of the merged embeddings, streamed from the finished embeddings.h5ad.

An export carries the first configured layer; `fair-esm` carries all.
"""

from __future__ import annotations

import hashlib
import logging
import os
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from virnucpro.errors import InputError
from virnucpro.files import atomic_directory, atomic_path
from virnucpro.formats import LIMITED_IDS
from virnucpro.merge.h5ad import OPTIONAL_COLUMNS
from virnucpro.merge.tables import write_table

__all__ = ["DIRECTORIES", "EXPORTS", "FAIR_ESM_NAMES", "check_exports", "export"]

logger = logging.getLogger(__name__)

_BLOCK = 8192
_MANY_FILES = 10_000
_LONGEST_NAME = 200  # bytes; file systems take 255
#: What extract.py calls the vectors of each pooling; it has no largest values.
FAIR_ESM_NAMES = {
    "mean": "mean_representations",
    "none": "mean_representations",
    "cls": "bos_representations",
}
_OPTIONAL = {name: pa.from_numpy_dtype(dtype) for name, dtype in OPTIONAL_COLUMNS.items()}


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
    unfit = [text for text in ids if not LIMITED_IDS["uniprot-h5"](text)]
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
            columns of `obs`), ``uniprot-h5`` (a dataset a record, named by its id, as UniProt
            publishes per-protein embeddings) or ``fair-esm`` (a folder with a .pt a record, as of
            fair-esm's extract.py, and ids.tsv with the files of all ids).
        h5ad: the finished embeddings.h5ad.
        target: the file or folder to write.

    Raises:
        InputError: an unknown kind.
        OSError: writing failed.
    """
    if kind not in EXPORTS:
        raise InputError(f"unknown export {kind!r}", hint=f"one of {', '.join(EXPORTS)}")
    place = atomic_directory if kind in DIRECTORIES else atomic_path
    with h5py.File(h5ad, "r") as source, place(target) as temporary:
        EXPORTS[kind](source, temporary, target)


def _blocks(source: h5py.File) -> Iterator[tuple[dict[str, Any], npt.NDArray[np.floating[Any]]]]:
    """Yield blocks of rows: the columns of `obs` and the embeddings [n, dim]."""
    for rows, columns in _obs_blocks(source):
        yield columns, source["X"][rows]


def _obs_blocks(source: h5py.File) -> Iterator[tuple[slice, dict[str, Any]]]:
    """Yield blocks of rows: which they are, and the columns of `obs`."""
    obs, names = source["obs"], _columns(source)
    for start in range(0, len(source["X"]), _BLOCK):
        rows = slice(start, start + _BLOCK)
        columns = {
            name: obs[name].asstr()[rows] if obs[name].dtype.kind == "O" else obs[name][rows]
            for name in ("_index", *names[1:])
        }
        columns["id"] = columns.pop("_index")
        yield rows, columns


def _columns(source: h5py.File) -> list[str]:
    """Name the columns of a table of the records: the id, then those of `obs`."""
    return ["id", *(name for name in source["obs"].attrs["column-order"] if name != "sample")]


def _parquet(source: h5py.File, temporary: Path, target: Path) -> None:
    dim = source["X"].shape[1]
    value = pa.from_numpy_dtype(source["X"].dtype)
    schema = pa.schema(
        [
            ("id", pa.string()),
            ("key", pa.string()),
            ("length", pa.int32()),
            ("truncated", pa.bool_()),
            *((name, _OPTIONAL[name]) for name in _columns(source) if name in _OPTIONAL),
            ("embedding", pa.list_(value, dim)),
        ]
    )
    with pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
        for obs, embeddings in _blocks(source):
            vectors = pa.FixedSizeListArray.from_arrays(pa.array(embeddings.reshape(-1)), dim)
            columns = [pa.array(obs[name]) for name in schema.names[:-1]]
            writer.write_batch(pa.record_batch([*columns, vectors], schema=schema))


def _npy(source: h5py.File, temporary: Path, target: Path) -> None:
    matrix, names = source["X"], _columns(source)
    header = {"descr": matrix.dtype.str, "fortran_order": False, "shape": matrix.shape}
    with temporary.open("wb") as array, atomic_path(target.with_suffix(".tsv")) as table:
        np.lib.format.write_array_header_1_0(array, header)

        def rows() -> Iterator[tuple[Any, ...]]:
            for obs, embeddings in _blocks(source):
                array.write(embeddings.tobytes())
                yield from zip(*(obs[name].tolist() for name in names), strict=True)

        write_table(table, names, rows())


def _uniprot_h5(source: h5py.File, temporary: Path, target: Path) -> None:
    with h5py.File(temporary, "w", locking="best-effort") as file:
        for obs, embeddings in _blocks(source):
            for name, embedding in zip(obs["id"], embeddings, strict=True):
                file.create_dataset(name, data=embedding, track_times=False)


def _fair_esm(source: h5py.File, temporary: Path, target: Path) -> None:
    """Write what ``scripts/extract.py`` of fair-esm writes with ``--include mean`` or ``bos``."""
    pooling = source["uns/virnucpro/pooling"].asstr()[()]
    records = len(source["X"])
    if records > _MANY_FILES:
        logger.warning(
            "%s: one file a protein, %s files; embeddings.h5ad and the export parquet hold the "
            "same in one",
            *(target, f"{records:,}"),
        )
    names = _columns(source)
    layers = [int(layer) for layer in source["uns/virnucpro/layers"][()]]
    matrices = [source["X"], *(source[f"layers/layer_{layer}"] for layer in layers[1:])]

    ambiguous = _ambiguous(label for _, obs in _obs_blocks(source) for label in _labels(obs))

    def rows() -> Iterator[tuple[Any, ...]]:
        for block, obs in _obs_blocks(source):
            means = [matrix[block].astype(np.float32) for matrix in matrices]
            for index, label in enumerate(_labels(obs)):
                file = _file_name(label, plain=_fold(label) not in ambiguous)
                vectors = {layer: mean[index] for layer, mean in zip(layers, means, strict=True)}
                _save(temporary / file, label, FAIR_ESM_NAMES[pooling], vectors)
                yield file, *(obs[column][index] for column in names)

    write_table(temporary / "ids.tsv", ("file", *names), rows())
    os.sync()  # once, for a flush a file would take hours


def _labels(obs: Mapping[str, Any]) -> Iterator[str]:
    """Yield the records' header lines. An id may end in white space that is not ASCII's."""
    for name, description in zip(obs["id"], obs["description"], strict=True):
        yield f"{name} {description}" if description else name


def _fold(label: str) -> str:
    """Return what labels have in common whose files some file system would take for one.

    Those of macOS and Windows ignore case, and macOS how a letter with accents is written. A folder
    that is whole here has to stay so where it is copied to.
    """
    return unicodedata.normalize("NFD", unicodedata.normalize("NFD", label).upper().casefold())


def _ambiguous(labels: Iterator[str]) -> set[str]:
    """Return the folded labels that several labels have."""
    seen: set[str] = set()
    several: set[str] = set()
    for label in labels:
        folded = _fold(label)
        (several if folded in seen else seen).add(folded)
    return several


def _save(path: Path, label: str, name: str, vectors: dict[int, npt.NDArray[np.float32]]) -> None:
    import torch  # here, because a merge without this export has no use for it

    tensors = {layer: torch.from_numpy(vector.copy()) for layer, vector in vectors.items()}
    with path.open("xb") as handle:
        torch.save({"label": label, name: tensors}, handle)


def _file_name(label: str, *, plain: bool = True) -> str:
    """Name a file after the record's header line, as extract.py does, where that is safe.

    Elsewhere a hash takes part in the name, so that two labels never meet in one file.

    Args:
        label: the record's header line.
        plain: whether no other label could be taken for this one (see `_fold`).
    """
    name = label.encode("utf-8", "replace").decode()
    safe = name.isprintable() and not name.startswith(".") and "/" not in name
    if plain and safe and len(name.encode()) <= _LONGEST_NAME:
        return f"{name}.pt"
    kept = "".join(letter if letter.isalnum() or letter in "._-|" else "_" for letter in name)
    digest = hashlib.blake2b(label.encode("utf-8", "replace"), digest_size=8).hexdigest()
    return f"{kept.lstrip('.')[:40]}.{digest}.pt"


DIRECTORIES = {"fair-esm"}
EXPORTS: dict[str, Callable[[h5py.File, Path, Path], None]] = {
    "parquet": _parquet,
    "npy": _npy,
    "uniprot-h5": _uniprot_h5,
    "fair-esm": _fair_esm,
}
