"""The accepted records of a sample, read from records.parquet as a stream."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from virnucpro.errors import DataError
from virnucpro.sequences.gene import GENE_SCHEMA
from virnucpro.sequences.outputs import RECORDS_SCHEMA

__all__ = [
    "RecordBlock",
    "RecordKeys",
    "RecordNumbers",
    "gene_columns",
    "iter_id_blocks",
    "iter_lines",
    "iter_numbers",
    "iter_records",
    "read_keys",
]

_BLOCK = 8192
_MANY_ROWS = 1 << 17
_HINT = "remove the sample's shards and records and run split again"


@dataclass(frozen=True)
class RecordBlock:
    """Some records, in input order; the fields are columns of records.parquet."""

    id: list[str]
    description: list[str]  # the rest of the header lines
    length: npt.NDArray[np.int32]  # [n] residues
    key: npt.NDArray[np.bytes_]  # [n] of 16 bytes
    replaced: npt.NDArray[np.int32]  # [n] letters that became X
    unknown: npt.NDArray[np.int32]  # [n] residues that are X, B or Z
    normalised: npt.NDArray[np.bool_]  # [n] whether normalising changed the record
    file: npt.NDArray[np.int32]  # [n] numbers of the input files
    line: npt.NDArray[np.int64]  # [n] lines of the headers
    genes: dict[str, Any] = field(default_factory=dict)  # columns of `GENE_SCHEMA` that there are


@dataclass(frozen=True)
class RecordNumbers:
    """Some records without their texts, in input order."""

    length: npt.NDArray[np.int32]  # [n] residues
    replaced: npt.NDArray[np.int32]  # [n] letters that became X
    normalised: npt.NDArray[np.bool_]  # [n] whether normalising changed the record
    key: npt.NDArray[np.bytes_]  # [n] of 16 bytes


@dataclass(frozen=True)
class RecordKeys:
    """What is needed to place the records, in input order."""

    keys: npt.NDArray[np.bytes_]  # [records] of 16 bytes
    shards: npt.NDArray[np.int32]  # [records] shard numbers
    lengths: npt.NDArray[np.int32]  # [records] residues
    order: npt.NDArray[np.int64]  # [records] numbers grouped by shard, there in input order
    bounds: npt.NDArray[np.int64]  # [shards + 1] where each shard's records start in `order`

    def of_shard(self, shard: int) -> npt.NDArray[np.int64]:
        """Return the numbers of a shard's records, in input order."""
        return self.order[self.bounds[shard] : self.bounds[shard + 1]]


def _open(path: Path) -> pq.ParquetFile:
    try:
        file = pq.ParquetFile(path)
    except FileNotFoundError:
        raise DataError("is missing", path=path, hint=_HINT) from None
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"is not a Parquet file ({error})", path=path, hint=_HINT) from error
    missing = set(RECORDS_SCHEMA.names) - set(file.schema_arrow.names)
    if missing:
        raise DataError(f"has no column {', '.join(sorted(missing))}", path=path, hint=_HINT)
    if file.schema_arrow.field("key").type != RECORDS_SCHEMA.field("key").type:
        raise DataError("has keys that are not of 16 bytes", path=path, hint=_HINT)
    return file


def _blocks(path: Path, columns: Sequence[str], rows: int) -> Iterator[dict[str, Any]]:
    """Yield blocks of at most `rows` records, in input order, as column -> list or array.

    A block lies in one row group: `split` makes them small where the texts are long.
    """
    with _open(path) as file:
        try:
            for group in range(file.num_row_groups):
                for batch in file.iter_batches(rows, [group], list(columns)):
                    yield {name: _values(batch.column(name)) for name in columns}
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"is damaged ({error})", path=path, hint=_HINT) from error


def iter_id_blocks(path: Path) -> Iterator[list[str]]:
    """Yield the ids of records.parquet in input order, in blocks."""
    for block in _blocks(path, ["id"], _BLOCK):
        yield block["id"]


def iter_numbers(path: Path) -> Iterator[RecordNumbers]:
    """Yield blocks of records without their texts, in input order."""
    for block in _blocks(path, _names(RecordNumbers), _MANY_ROWS):
        yield RecordNumbers(**block)


def iter_records(path: Path, rows: int = _BLOCK) -> Iterator[RecordBlock]:
    """Yield blocks of at most `rows` records, in input order."""
    columns, genes = [name for name in _names(RecordBlock) if name != "genes"], gene_columns(path)
    for block in _blocks(path, [*columns, *genes], rows):
        found = {name: block.pop(name) for name in genes}
        yield RecordBlock(**block, genes=found)


def iter_lines(
    path: Path,
) -> Iterator[tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]]:
    """Yield blocks of the records' files and lines, in input order."""
    for block in _blocks(path, ["file", "line"], _MANY_ROWS):
        yield block["file"], block["line"]


def gene_columns(path: Path) -> list[str]:
    """Name the columns of `GENE_SCHEMA` that a records.parquet has: none where records are none."""
    with _open(path) as file:
        return [name for name in GENE_SCHEMA.names if name in file.schema_arrow.names]


def _names(kind: type[Any]) -> list[str]:
    return [field.name for field in fields(kind)]


def read_keys(path: Path, *, shards: int) -> RecordKeys:
    """Read what is needed to place the records: about 32 bytes a record.

    Args:
        path: records.parquet.
        shards: number of shards of the manifest.

    Raises:
        DataError: damaged, not in input order, or a shard that is not in the manifest.
    """
    with _open(path) as parquet:
        n = parquet.metadata.num_rows
    keys, numbers, lengths = np.empty(n, "S16"), np.empty(n, np.int32), np.empty(n, np.int32)
    start, last = 0, (-1, -1)
    for block in _blocks(path, ["key", "shard", "length", "file", "line"], _BLOCK):
        rows = slice(start, start + len(block["key"]))
        keys[rows], numbers[rows], lengths[rows] = block["key"], block["shard"], block["length"]
        last = _check_order(path, last, block["file"], block["line"])
        start = rows.stop
    if n and (numbers.min() < 0 or numbers.max() >= shards):
        raise DataError(
            f"names shards {numbers.min()} to {numbers.max()}, the manifest has {shards}",
            path=path,
            hint=_HINT,
        )
    counts = np.bincount(numbers, minlength=shards)
    bounds = np.concatenate([[0], np.cumsum(counts)])
    return RecordKeys(keys, numbers, lengths, np.argsort(numbers, kind="stable"), bounds)


def _values(column: pa.Array) -> list[str] | npt.NDArray[Any]:
    """Return texts as a list; numbers, booleans or keys as an array, a view where possible.

    Through the buffer: Arrow's own conversion loads pandas where it is installed, half a second.
    """
    if column.type == pa.string():
        texts: list[str] = column.to_pylist()
        return texts
    raw = column.buffers()[1] or b""
    first, end = column.offset, column.offset + len(column)
    if column.type == pa.bool_():
        bits = np.unpackbits(np.frombuffer(raw, np.uint8), bitorder="little")
        return bits[first:end].astype(np.bool_)
    kind = "S16" if column.type == pa.binary(16) else column.type.to_pandas_dtype()
    return np.frombuffer(raw, kind)[first:end]


def _check_order(
    path: Path, last: tuple[int, int], file: npt.NDArray[Any], line: npt.NDArray[Any]
) -> tuple[int, int]:
    """Check that records are in input order, each once; `last` is the record before these."""
    files, lines = np.append(last[0], file), np.append(last[1], line)
    increasing = (files[1:] > files[:-1]) | ((files[1:] == files[:-1]) & (lines[1:] > lines[:-1]))
    if not increasing.all():
        where = int(np.flatnonzero(~increasing)[0])
        raise DataError(
            f"records are not in input order: line {line[where]} of input {file[where]} follows "
            f"line {lines[where]} of input {files[where]}",
            path=path,
            hint=_HINT,
        )
    return int(files[-1]), int(lines[-1])
