"""The accepted records of a sample, read from records.parquet as a stream."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from virnucpro.errors import DataError

__all__ = [
    "RecordKeys",
    "iter_id_blocks",
    "iter_lengths",
    "iter_records",
    "read_keys",
]

COLUMNS = (
    "id",
    "description",
    "length",
    "key",
    "shard",
    "replaced",
    "unknown",
    "normalised",
    "file",
    "line",
)
BLOCK = 8192
_MANY_ROWS = 1 << 17
_HINT = "remove the sample's shards and records and run split again"


@dataclass(frozen=True)
class RecordKeys:
    """What places the records, in input order."""

    keys: npt.NDArray[np.bytes_]  # [records] of 16 bytes
    shards: npt.NDArray[np.int32]  # [records] shard numbers
    lengths: npt.NDArray[np.int32]  # [records] residues
    order: npt.NDArray[np.int64]  # [records] numbers grouped by shard, there in input order
    bounds: npt.NDArray[np.int64]  # [shards + 1] where each shard's records start in `order`

    def of_shard(self, shard: int) -> npt.NDArray[np.int64]:
        """Give the numbers of a shard's records, in input order."""
        return self.order[self.bounds[shard] : self.bounds[shard + 1]]


def _open(path: Path) -> pq.ParquetFile:
    try:
        file = pq.ParquetFile(path)
    except FileNotFoundError:
        raise DataError("is missing", path=path) from None
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"is not a Parquet file ({error})", path=path, hint=_HINT) from error
    missing = set(COLUMNS) - set(file.schema_arrow.names)
    if missing:
        raise DataError(f"has no column {', '.join(sorted(missing))}", path=path, hint=_HINT)
    if file.schema_arrow.field("key").type != pa.binary(16):
        raise DataError("has keys that are not of 16 bytes", path=path, hint=_HINT)
    return file


def _batches(
    path: Path, columns: tuple[str, ...], rows: int = BLOCK
) -> Iterator[dict[str, pa.Array]]:
    """Yield blocks of at most `rows` records, in file order, as column -> array.

    A block lies in one row group: `split` makes them small where the texts are long.
    """
    with _open(path) as file:
        try:
            for group in range(file.num_row_groups):
                for batch in file.iter_batches(rows, [group], list(columns)):
                    yield {name: batch.column(name) for name in columns}
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"is damaged ({error})", path=path, hint=_HINT) from error


def iter_id_blocks(path: Path) -> Iterator[list[str]]:
    """Yield the ids of records.parquet in input order, in blocks."""
    for batch in _batches(path, ("id",)):
        yield batch["id"].to_pylist()


def iter_lengths(path: Path) -> Iterator[dict[str, npt.NDArray[Any]]]:
    """Yield what the records' texts are not needed for, in blocks, in input order.

    Yields:
        ``length``, ``replaced``, ``normalised``, and the first half of ``key`` as uint64.
    """
    for batch in _batches(path, ("length", "replaced", "normalised", "key"), _MANY_ROWS):
        block = {name: _to_numpy(array) for name, array in batch.items()}
        block["key"] = block["key"].view(np.uint64)[::2].copy()
        yield block


def iter_records(path: Path, rows: int = BLOCK) -> Iterator[dict[str, Any]]:
    """Yield blocks of at most `rows` records in input order.

    Yields:
        Column -> list of str for ``id`` and ``description``, [n] strings of 16 bytes for ``key``,
        else a numpy array.
    """
    for batch in _batches(path, COLUMNS, rows):
        yield {
            name: array.to_pylist() if name in ("id", "description") else _to_numpy(array)
            for name, array in batch.items()
        }


def read_keys(path: Path, *, shards: int) -> RecordKeys:
    """Read what places the records: about 32 bytes a record.

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
    for batch in _batches(path, ("key", "shard", "length", "file", "line")):
        rows = slice(start, start + len(batch["key"]))
        block = {name: _to_numpy(array) for name, array in batch.items()}
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


def _to_numpy(column: pa.Array) -> npt.NDArray[Any]:
    """Give numbers, truth values or keys ([n] strings of 16 bytes) without a copy where it can be.

    Through the buffer: Arrow's own conversion loads pandas where it is installed, half a second.
    """
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
    """Check that records stand in input order, each once; `last` is the record before these."""
    files, lines = np.append(last[0], file), np.append(last[1], line)
    rising = (files[1:] > files[:-1]) | ((files[1:] == files[:-1]) & (lines[1:] > lines[:-1]))
    if not rising.all():
        where = int(np.flatnonzero(~rising)[0])
        raise DataError(
            f"records are not in input order: line {line[where]} of input {file[where]} follows "
            f"line {lines[where]} of input {files[where]}",
            path=path,
            hint=_HINT,
        )
    return int(files[-1]), int(lines[-1])
