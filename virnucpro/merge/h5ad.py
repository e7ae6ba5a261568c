"""embeddings.h5ad: AnnData's on-disk format, written with h5py as a stream.

The layout follows the specification "On-disk format" of anndata 0.12
(https://anndata.readthedocs.io/en/stable/fileformat-prose.html): every group and dataset carries
``encoding-type`` and ``encoding-version``. Nothing in the file depends on the time or the place, so
the same rows give the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import h5py
import numpy as np
import numpy.typing as npt

from virnucpro.errors import DataError
from virnucpro.sequences.gene import GENE_SCHEMA

__all__ = [
    "OBS_COLUMNS",
    "OPTIONAL_COLUMNS",
    "REQUEST",
    "STRING",
    "H5adWriter",
    "ObsBlock",
    "write_mapping",
]

STRING = h5py.string_dtype("utf-8")
_OBS_DTYPES: dict[str, Any] = {
    "_index": STRING,
    "description": STRING,
    "length": np.int32,
    "tokens": np.int32,
    "truncated": np.bool_,
    "normalised": np.bool_,
    "replaced": np.int32,
    "unknown_fraction": np.float32,
    "key": STRING,
}
#: Columns of `obs` in every file.
OBS_COLUMNS = ("sample", *(name for name in _OBS_DTYPES if name != "_index"))
#: Columns of `obs` that only some runs have: in how many windows a sequence was computed, its
#: pseudo-perplexity, where its residues start and end in residues.h5, whether its vector was taken
#: from a store in which another kind of device, or other tokens per step, had computed it, and its
#: gene.
OPTIONAL_COLUMNS: dict[str, Any] = {
    "windows": np.int32,
    "pseudo_perplexity": np.float64,
    "residues_start": np.int64,
    "residues_end": np.int64,
    "from_close_request": np.bool_,
    **{
        each.name: STRING if each.type == "string" else np.dtype(each.type.to_pandas_dtype())
        for each in GENE_SCHEMA
    },
}
REQUEST = "virnucpro-request"
"""Attribute of the root: the id of what the file was made for."""

_TURN = 8192  # rows
_EMPTY_GROUPS = ("obsm", "obsp", "varm", "varp")


class Block(Protocol):
    """Some rows of `obs`."""

    @property
    def id(self) -> Sequence[str]:
        """Names of the rows."""

    def column(self, name: str) -> Any:
        """Return a column by its name in the file."""


@dataclass(frozen=True)
class ObsBlock:
    """Some rows of `obs`; the fields are its columns, and the id."""

    id: Sequence[str]
    description: Sequence[str]  # the rest of the header lines
    length: npt.NDArray[np.int32]  # [n] residues after normalising
    tokens: npt.NDArray[np.int32]  # [n] that were computed for the record
    truncated: npt.NDArray[np.bool_]  # [n] whether the C-terminal end was left out
    normalised: npt.NDArray[np.bool_]  # [n] whether normalising changed the record
    replaced: npt.NDArray[np.int32]  # [n] letters that became X
    unknown_fraction: npt.NDArray[np.float32]  # [n] residues that are X, B or Z, of all
    key: Sequence[str] | Sequence[bytes]  # hexadecimal; ASCII bytes are written faster
    # Of `OPTIONAL_COLUMNS`, name -> [n]; the writer takes those that its file has.
    optional: dict[str, npt.NDArray[Any] | Sequence[str]] = field(default_factory=dict)

    def column(self, name: str) -> Any:
        """Return a column by its name in the file."""
        if name in OPTIONAL_COLUMNS:
            return self.optional[name]
        return self.id if name == "_index" else getattr(self, name)


class H5adWriter:
    """Writes embeddings.h5ad block by block, in constant memory.

    Args:
        path: the file to make; the caller moves it to its final name.
        rows: number of records that will be written.
        dim: dimension of the embeddings.
        dtype: float32 or float16.
        layers: model layers, 1-based; the first becomes X, others ``layers/layer_{i}``.
        sample: the sample's name, a column of `obs`.
        optional: further columns of `obs`, of `OPTIONAL_COLUMNS`.
        columns: name -> type of the other columns and of the index; as left out, `OBS_COLUMNS`.
        uns: provenance, see `write_mapping`.
        request: the id of what the file was made for, the root's attribute `REQUEST`; written
            first, so that it is found within the first bytes without reading HDF5.
    """

    def __init__(
        self,
        path: Path,
        *,
        rows: int,
        dim: int,
        dtype: npt.DTypeLike,
        layers: Sequence[int],
        sample: str,
        uns: Mapping[str, Any],
        optional: Sequence[str] = (),
        columns: Mapping[str, Any] = _OBS_DTYPES,
        request: str = "",
    ) -> None:
        self.rows = rows
        self._path = path
        self._next = 0
        self._file = h5py.File(path, "w", locking="best-effort")
        if request:
            self._file.attrs[REQUEST] = np.bytes_(request)
        _encode(self._file, "anndata", "0.1.0")
        self._matrices = [_array(self._file, "X", (rows, dim), dtype)]
        group = _group(self._file, "layers", "dict", "0.1.0")
        for layer in layers[1:]:
            self._matrices.append(_array(group, f"layer_{layer}", (rows, dim), dtype))
        self._columns = {**columns, **{name: OPTIONAL_COLUMNS[name] for name in optional}}
        self._obs = _write_obs(self._file, rows, sample, self._columns)
        _write_var(self._file, dim)
        for name in _EMPTY_GROUPS:
            _group(self._file, name, "dict", "0.1.0")
        write_mapping(self._file, "uns", uns)

    def write(self, block: Block, embeddings: npt.NDArray[np.floating[Any]]) -> None:
        """Append some rows.

        Args:
            block: the rows' columns of `obs`.
            embeddings: [n, layers, dim].
        """
        first, count = self._next, len(block.id)
        for index, matrix in enumerate(self._matrices):
            matrix[first : first + count] = embeddings[:, index]
        columns = {name: block.column(name) for name in self._columns}
        # In turns, so that the texts of a row lie near each other in the file.
        for start in range(0, count, _TURN):
            stop = min(start + _TURN, count)
            for name, column in columns.items():
                self._obs[name][first + start : first + stop] = column[start:stop]
        self._next += count

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
        if kind is None and self._next != self.rows:
            raise DataError(
                f"{self._next} of {self.rows} rows were written: the records changed meanwhile",
                path=self._path,
            )


def write_mapping(parent: h5py.Group, name: str, mapping: Mapping[str, Any]) -> None:
    """Write a nested mapping of str, bool, int, float and lists of str or numbers.

    Args:
        parent: the group to write into.
        name: the new group's name.
        mapping: the values; None is left out, for older readers know no null.
    """
    group = _group(parent, name, "dict", "0.1.0")
    for key, value in mapping.items():
        if isinstance(value, Mapping):
            write_mapping(group, key, value)
        elif isinstance(value, str):
            _encode(_dataset(group, key, data=value, dtype=STRING), "string", "0.2.0")
        elif isinstance(value, bool | int | float):
            _encode(_dataset(group, key, data=value), "numeric-scalar", "0.2.0")
        elif value is not None and all(isinstance(item, str) for item in value):
            _strings(group, key, (len(value),))[:] = value
        elif value is not None:
            _encode(_dataset(group, key, data=np.asarray(value)), "array", "0.2.0")


def _write_obs(file: h5py.File, rows: int, sample: str, columns: Mapping[str, Any]) -> h5py.Group:
    obs = _dataframe(file, "obs", ("sample", *(name for name in columns if name != "_index")))
    for name, dtype in columns.items():
        if dtype is STRING:
            _strings(obs, name, (rows,))
        else:
            _array(obs, name, (rows,), dtype)
    # One value for all rows: a categorical column stores it once.
    column = _group(obs, "sample", "categorical", "0.2.0")
    column.attrs["ordered"] = False
    _strings(column, "categories", (1,))[:] = [sample]
    _array(column, "codes", (rows,), np.int8)
    return obs


def _write_var(file: h5py.File, dim: int) -> None:
    var = _dataframe(file, "var", ())
    _strings(var, "_index", (dim,))[:] = [f"esm2_{index}" for index in range(dim)]


def _encode(where: h5py.Group | h5py.Dataset, kind: str, version: str) -> None:
    where.attrs["encoding-type"] = kind
    where.attrs["encoding-version"] = version


def _group(parent: h5py.Group, name: str, kind: str, version: str) -> h5py.Group:
    group = parent.create_group(name)
    _encode(group, kind, version)
    return group


def _dataframe(parent: h5py.Group, name: str, columns: Sequence[str]) -> h5py.Group:
    group = _group(parent, name, "dataframe", "0.2.0")
    group.attrs["_index"] = "_index"
    group.attrs.create("column-order", np.array(columns, dtype=object), dtype=STRING)
    return group


def _dataset(parent: h5py.Group, name: str, **options: Any) -> h5py.Dataset:
    return parent.create_dataset(name, track_times=False, **options)


def _array(
    parent: h5py.Group, name: str, shape: tuple[int, ...], dtype: npt.DTypeLike
) -> h5py.Dataset:
    dataset = _dataset(parent, name, shape=shape, dtype=dtype)
    _encode(dataset, "array", "0.2.0")
    return dataset


def _strings(parent: h5py.Group, name: str, shape: tuple[int, ...]) -> h5py.Dataset:
    dataset = _dataset(parent, name, shape=shape, dtype=STRING)
    _encode(dataset, "string-array", "0.2.0")
    return dataset
