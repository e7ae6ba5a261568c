"""The export `parquet`: one row per record."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from virnucpro.merge.exports.source import Export, blocks, columns_of
from virnucpro.merge.h5ad import OPTIONAL_COLUMNS

__all__ = ["PARQUET"]

_OPTIONAL = {
    name: pa.string() if dtype.kind == "O" else pa.from_numpy_dtype(dtype)
    for name, dtype in ((name, np.dtype(dtype)) for name, dtype in OPTIONAL_COLUMNS.items())
}


def _write(source: h5py.File, temporary: Path, _target: Path) -> None:
    dim = source["X"].shape[1]
    value = pa.from_numpy_dtype(source["X"].dtype)
    schema = pa.schema(
        [
            ("id", pa.string()),
            ("key", pa.string()),
            ("length", pa.int32()),
            ("truncated", pa.bool_()),
            *((name, _OPTIONAL[name]) for name in columns_of(source) if name in _OPTIONAL),
            ("embedding", pa.list_(value, dim)),
        ]
    )
    with pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
        for obs, embeddings in blocks(source):
            vectors = pa.FixedSizeListArray.from_arrays(pa.array(embeddings.reshape(-1)), dim)
            columns = [pa.array(obs[name]) for name in schema.names[:-1]]
            writer.write_batch(pa.record_batch([*columns, vectors], schema=schema))


PARQUET = Export(_write)
