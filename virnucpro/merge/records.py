"""The records of a sample, read as a stream, and where in the shards each one's embedding is."""

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
from virnucpro.plan.plan import Plan

__all__ = [
    "Places",
    "RecordKeys",
    "iter_id_blocks",
    "iter_lengths",
    "iter_records",
    "place_shard",
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
    """What places the records, one entry a record, in input order.

    Attributes:
        keys: [n] 16-byte keys.
        shards: [n] int32 shard numbers.
        lengths: [n] int32 residues.
        order: [n] int64, the records' numbers grouped by shard, in input order inside a shard.
        bounds: [shards + 1] int64, where each shard's records start in `order`.
    """

    keys: npt.NDArray[np.bytes_]
    shards: npt.NDArray[np.int32]
    lengths: npt.NDArray[np.int32]
    order: npt.NDArray[np.int64]
    bounds: npt.NDArray[np.int64]

    def of_shard(self, shard: int) -> npt.NDArray[np.int64]:
        """Give the numbers of a shard's records, in input order."""
        return self.order[self.bounds[shard] : self.bounds[shard + 1]]


@dataclass(frozen=True)
class Places:
    """Where each record's embedding is, and what was computed for it; one entry a record.

    Attributes:
        shard: [n] int32 shard number.
        row: [n] int32 row in the shard's array.
        tokens: [n] int32 tokens that were computed.
        windows: [n] int32, in how many items the sequence was computed.
        residues: [n, 2] int64, where its residues start and end among those of all sequences that
            have an embedding, shard after shard.
        truncated: [n] bool, residues were left out.
        quarantined: [n] bool, the row holds no embedding.
    """

    shard: npt.NDArray[np.int32]
    row: npt.NDArray[np.int32]
    tokens: npt.NDArray[np.int32]
    windows: npt.NDArray[np.int32]
    residues: npt.NDArray[np.int64]
    truncated: npt.NDArray[np.bool_]
    quarantined: npt.NDArray[np.bool_]

    @classmethod
    def empty(cls, shards: npt.NDArray[np.int32]) -> Places:
        """Make room for the places of the records of these shards; untouched room takes none."""
        n = len(shards)
        return cls(
            shards,
            np.zeros(n, np.int32),
            np.zeros(n, np.int32),
            np.zeros(n, np.int32),
            np.zeros((n, 2), np.int64),
            np.zeros(n, np.bool_),
            np.zeros(n, np.bool_),
        )


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


def place_shard(
    name: str,
    plan: Plan,
    quarantined: dict[int, tuple[str, str]],
    records: RecordKeys,
    chosen: npt.NDArray[np.int64],
    places: Places,
    first_residue: int | None = None,
) -> int | None:
    """Find the rows of a shard's records by their keys, and fill in their `places`.

    Args:
        name: the shard's name, for messages.
        plan: the shard's plan.
        quarantined: rows of the shard without an embedding.
        records: all records.
        chosen: numbers of the shard's records.
        places: filled in at `chosen`.
        first_residue: how many residues the shards before have; None where residues were not kept.

    Returns:
        How many residues the shards up to this one have; None where they were not kept.

    Raises:
        DataError: plan and records do not hold the same sequences.
    """
    keys, ends, tokens, truncated = _by_row(name, plan)
    wanted = records.keys[chosen]
    row = np.searchsorted(keys, wanted)
    found = row < len(keys)
    found[found] = keys[row[found]] == wanted[found]
    unused = np.ones(len(keys), np.bool_)
    unused[row[found]] = False
    if not found.all() or unused.any():
        raise DataError(
            f"shard {name}: records and plan do not hold the same sequences: "
            f"{np.count_nonzero(~found)} records are not in the plan{_hex(wanted[~found])}, "
            f"{np.count_nonzero(unused)} sequences of the plan are in no record"
            f"{_hex(keys[unused])}",
            hint="remove the sample's shards and plans and run again",
        )
    lengths = records.lengths[chosen]
    wrong = np.where(truncated[row], lengths <= ends[row], lengths != ends[row])
    if wrong.any():
        first = int(np.flatnonzero(wrong)[0])
        raise DataError(
            f"shard {name}: {np.count_nonzero(wrong)} records have another length than their "
            f"plan, the first: record {chosen[first]} has {lengths[first]} residues, the plan "
            f"ends at {ends[row[first]]}",
            hint="remove the sample's shards and plans and run again",
        )
    places.row[chosen] = row
    places.tokens[chosen] = tokens[row]
    places.windows[chosen] = np.bincount(plan.row)[row]
    places.truncated[chosen] = truncated[row]
    places.quarantined[chosen] = np.isin(row, np.fromiter(quarantined, dtype=np.int64))
    if first_residue is None:
        return None
    kept = np.diff(plan.residue_offsets)
    kept[list(quarantined)] = 0
    residue_ends = first_residue + np.cumsum(kept)
    places.residues[chosen] = np.stack([residue_ends - kept, residue_ends], axis=1)[row]
    return int(residue_ends[-1]) if len(kept) else first_residue


def _by_row(name: str, plan: Plan) -> tuple[npt.NDArray[Any], ...]:
    """Give each sequence's key, last residue, tokens and truncation; a row may be many items."""
    rows = int(np.count_nonzero(np.bincount(plan.row)))
    if plan.items and int(plan.row.max()) != rows - 1:
        raise DataError(f"shard {name}: the plan leaves out rows: {rows} of {plan.row.max() + 1}")
    # A fixed-size byte string compares in numpy as if padded with NUL, so a key that ends in NUL
    # keeps its place.
    keys = np.zeros(rows, dtype="S16")
    keys[plan.row] = np.ascontiguousarray(plan.keys).view("S16").reshape(-1)
    ends, tokens = np.zeros(rows, np.int64), np.zeros(rows, np.int64)
    np.maximum.at(ends, plan.row, plan.end)
    np.add.at(tokens, plan.row, plan.tokens)
    truncated = np.zeros(rows, np.bool_)
    truncated[plan.row[plan.truncated]] = True
    if not (keys[1:] > keys[:-1]).all():
        raise DataError(f"shard {name}: the plan's keys are not rising by row")
    return keys, ends, tokens, truncated


def _hex(keys: npt.NDArray[Any]) -> str:
    if not len(keys):
        return ""
    examples = ", ".join(bytes(key).ljust(16, b"\0").hex() for key in keys[:10])
    return f" ({examples}{', ...' if len(keys) > 10 else ''})"
