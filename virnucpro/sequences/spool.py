"""What `split` keeps on disk between reading the input and knowing the number of shards.

Sequences go to 256 partitions by the first byte of their key, and records to one Arrow file in
input order, so that memory depends on neither.
"""

from __future__ import annotations

import contextlib
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from virnucpro.sequences.alphabet import KEY_BYTES, SPECIAL_TOKENS
from virnucpro.sequences.gene import ANNOTATION_COLUMNS, GENE_SCHEMA, Gene
from virnucpro.sequences.record import Record

__all__ = ["BUCKETS", "PARTITIONS", "PartitionSpool", "RecordSpool", "hash_id"]

PARTITIONS = 256
BUCKETS = 65_536

_NO_KEY = bytes(KEY_BYTES)
_PENDING_BYTES = 1 << 25
_LINE_OVERHEAD = 100  # the key, the bytes object around a line, and its place in a list
_READ_BYTES = 1 << 20
_BATCH_RECORDS = 1 << 15
_BATCH_TEXT = 1 << 23


def hash_id(identifier: str) -> int:
    """Hash an id to 64 bits; equal hashes make ids suspect of being equal, and no more.

    Python's own hash is keyed by the process: the numbers hold for one run and are not stored.
    """
    return hash(identifier)


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Put the file's name into an error of writing to it: the system's error has none."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


class PartitionSpool:
    """Sequences with their keys, in one file for each first byte of the key.

    A key's shard is its first eight bytes, little-endian, modulo the number of shards. That number
    is a power of two up to 65,536, so the key's first two bytes alone decide it, whatever it is.

    Attributes:
        tokens: [BUCKETS] int64, tokens (residues + 2) of all sequences, repeated ones included, by
            the key's first two bytes.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._keys: list[bytes] = []
        self._residues: list[bytes] = []
        self._pending_bytes = 0
        self._tokens = np.zeros(BUCKETS, np.int64)

    @property
    def tokens(self) -> npt.NDArray[np.int64]:
        """Tokens by bucket."""
        self._flush()
        return self._tokens

    def add(self, key: bytes, residues: bytes) -> None:
        """Take one sequence."""
        self._keys.append(key)
        self._residues.append(residues)
        self._pending_bytes += len(residues) + _LINE_OVERHEAD
        if self._pending_bytes >= _PENDING_BYTES:
            self._flush()

    def lines(self, partition: int) -> Iterator[list[bytes]]:
        """Return lines of key as hex, space and residues: a partition's sequences, in blocks."""
        self._flush()
        path = self._path(partition)
        if path.exists():
            with path.open("rb") as handle:
                while block := handle.readlines(_READ_BYTES):
                    yield block

    def remove(self, partition: int) -> None:
        """Free a partition's disk space."""
        self._path(partition).unlink(missing_ok=True)

    def _path(self, partition: int) -> Path:
        return self._directory / f"{partition:02x}.sequences"

    def _flush(self) -> None:
        """Append what is pending to the partitions' files.

        What can be done for many sequences at once is done here rather than in `add`.
        """
        if not self._keys:
            return
        joined = b"".join(self._keys)
        keys = np.frombuffer(joined, np.uint8).reshape(-1, KEY_BYTES)
        lengths = np.fromiter(map(len, self._residues), np.int64, len(keys))
        np.add.at(self._tokens, keys[:, :2].copy().view("<u2")[:, 0], lengths + SPECIAL_TOKENS)
        hexadecimal = np.frombuffer(joined.hex().encode(), f"S{2 * KEY_BYTES}").tolist()
        order = np.argsort(keys[:, 0], kind="stable")
        ends = np.cumsum(np.bincount(keys[:, 0], minlength=PARTITIONS))
        for partition, rows in enumerate(np.split(order, ends[:-1])):
            if not len(rows):
                continue
            lines = [b"%b %b\n" % (hexadecimal[row], self._residues[row]) for row in rows.tolist()]
            path = self._path(partition)
            # Opened for each flush: 256 files kept open are more than some systems allow.
            with _naming(path), path.open("ab") as handle:
                handle.write(b"".join(lines))
        self._keys.clear()
        self._residues.clear()
        self._pending_bytes = 0


_SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "description": pa.string(),
        "length": pa.int64(),
        "key": pa.binary(KEY_BYTES),
        "replaced": pa.int32(),
        "unknown": pa.int32(),
        "normalised": pa.bool_(),
        "file": pa.int32(),
        "line": pa.int64(),
        "reason": pa.string(),
        "detail": pa.string(),
        "id_hash": pa.int64(),
    }
)


class RecordSpool:
    """All records in input order, in an Arrow file; of each one only the id's hash is in memory.

    Args:
        path: the file to write.
        genes: whether each record carries a gene, whose fields are columns then.

    Attributes:
        annotated: whether a gene has more than its place, see `ANNOTATION_COLUMNS`.
    """

    def __init__(self, path: Path, *, genes: bool = False) -> None:
        self._path = path
        self._schema = pa.schema([*_SCHEMA, *(GENE_SCHEMA if genes else ())])
        self._writer: Any = pa.ipc.new_file(str(path), self._schema)
        self._genes: list[Gene | None] | None = [] if genes else None
        self.annotated = False
        self._rows: list[tuple[Any, ...]] = []
        # What few records have, by their place in _rows: replaced, unknown, normalised, reason,
        # detail.
        self._unusual: dict[int, tuple[Any, ...]] = {}
        self._text = 0
        self._hashes = array("q")

    def __len__(self) -> int:
        """Number of records."""
        return len(self._hashes) + len(self._rows)

    @property
    def has_genes(self) -> bool:
        """Whether each record carries a gene."""
        return self._genes is not None

    @property
    def id_hashes(self) -> npt.NDArray[np.int64]:
        """[records] int64, in input order until a caller sorts it, in place, after `close`."""
        return np.frombuffer(self._hashes, dtype=np.int64)

    def add(
        self,
        record: Record,
        file: int,
        *,
        length: int,
        key: bytes = _NO_KEY,
        replaced: int = 0,
        unknown: int = 0,
        normalised: bool = False,
        reason: str = "",
        detail: str = "",
    ) -> None:
        """Take the next record.

        Args:
            record: as it was read; its residues are not kept.
            file: index of the input file.
            length: residues after normalising; of a record over the limit, letters in the file.
            key: of the normalised residues; none for a quarantined record.
            replaced: letters that became X.
            unknown: residues that are not known, those among them.
            normalised: whether anything was changed.
            reason: why it is quarantined; empty for an accepted record.
            detail: the reason in words.
        """
        if unknown or normalised or reason:
            self._unusual[len(self._rows)] = (replaced, unknown, normalised, reason, detail)
        self._rows.append((record.id, record.description, length, key, file, record.line))
        if self._genes is not None:
            self._genes.append(record.gene)
        self._text += len(record.id) + len(record.description)
        if self._text >= _BATCH_TEXT or len(self._rows) >= _BATCH_RECORDS:
            self._flush()

    def close(self) -> None:
        """Write what is pending; records cannot be added any more."""
        self._flush()
        self._writer.close()

    def batches(self, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
        """Read the records back in blocks, in input order.

        Args:
            columns: the columns that are needed; None for all.
        """
        options = pa.ipc.IpcReadOptions(
            included_fields=None
            if columns is None
            else [self._schema.names.index(column) for column in columns]
        )
        with pa.OSFile(str(self._path)) as source:
            reader = pa.ipc.open_file(source, options=options)
            for number in range(reader.num_record_batches):
                yield reader.get_batch(number)

    def _flush(self) -> None:
        if not self._rows:
            return
        rows = len(self._rows)
        ids, descriptions, lengths, keys, files, lines = zip(*self._rows, strict=True)
        replaced, unknown = np.zeros(rows, np.int32), np.zeros(rows, np.int32)
        normalised = np.zeros(rows, bool)
        reasons, details = [""] * rows, [""] * rows
        for row, values in self._unusual.items():
            replaced[row], unknown[row], normalised[row], reasons[row], details[row] = values
        hashes = array("q", map(hash_id, ids))
        self._hashes.extend(hashes)
        columns: Sequence[Any] = (
            *(ids, descriptions, lengths, keys, replaced, unknown, normalised, files, lines),
            *(reasons, details, hashes, *self._gene_columns()),
        )
        arrays = [
            pa.array(column, field.type)
            for column, field in zip(columns, self._schema, strict=True)
        ]
        with _naming(self._path):
            self._writer.write_batch(pa.record_batch(arrays, schema=self._schema))
        self._rows.clear()
        self._unusual.clear()
        self._text = 0

    def _gene_columns(self) -> list[list[Any]]:
        """Return the pending genes field by field, and forget them."""
        if self._genes is None:
            return []
        columns = [[getattr(gene, name) for gene in self._genes] for name in GENE_SCHEMA.names]
        told = dict(zip(GENE_SCHEMA.names, columns, strict=True))
        self.annotated |= any(any(told[name]) for name in ANNOTATION_COLUMNS)
        self._genes.clear()
        return columns
