"""The second half of a split: from the spools to the shards, the records and the quarantine."""

from __future__ import annotations

import contextlib
import csv
import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from virnucpro.files import atomic_path, give_name
from virnucpro.progress import Progress
from virnucpro.sequences.alphabet import KEY_BYTES, SPECIAL_TOKENS
from virnucpro.sequences.gene import ANNOTATION_COLUMNS, GENE_SCHEMA
from virnucpro.sequences.identifiers import Renames
from virnucpro.sequences.manifest import Lengths, ShardEntry
from virnucpro.sequences.shards import shard_bytes, shard_name
from virnucpro.sequences.spool import BUCKETS, PARTITIONS, PartitionSpool, RecordSpool

__all__ = [
    "QUARANTINE_COLUMNS",
    "RECORDS_SCHEMA",
    "ShardTotals",
    "choose_shards",
    "count_rows",
    "write_records",
    "write_shards",
]

QUARANTINE_COLUMNS = ("sample", "id", "file", "line", "length", "reason", "detail")

RECORDS_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("description", pa.string()),
        ("length", pa.int32()),
        ("key", pa.binary(KEY_BYTES)),
        ("shard", pa.int32()),
        ("replaced", pa.int32()),
        ("unknown", pa.int32()),
        ("normalised", pa.bool_()),
        ("file", pa.int32()),
        ("line", pa.int64()),
    ]
)
_REPETITIVE = [
    "shard",
    "replaced",
    "unknown",
    "normalised",
    "file",
]  # worth a dictionary in Parquet
_FRAME = 2 * KEY_BYTES + 2  # of a spooled line: the key, a space, a line feed


@dataclass
class ShardTotals:
    """What was written into the shards.

    Attributes:
        shards: the manifest's entry of each shard.
        lengths: number of distinct sequences of each length in residues.
    """

    shards: list[ShardEntry] = field(default_factory=list)
    lengths: Counter[int] = field(default_factory=Counter)

    @property
    def sequences(self) -> int:
        """Distinct sequences."""
        return self.lengths.total()

    @property
    def residues(self) -> int:
        """Residues of the distinct sequences."""
        return sum(length * count for length, count in self.lengths.items())

    def length_summary(self) -> Lengths:
        """Summarise the lengths of the distinct sequences."""
        if not self.sequences:
            return Lengths()
        values = np.array(sorted(self.lengths), np.int64)
        ends = np.cumsum([self.lengths[int(value)] for value in values])
        middle = [(self.sequences - 1) // 2, self.sequences // 2]
        low, high = values[np.searchsorted(ends, middle, side="right")]
        return Lengths(
            min=int(values[0]),
            median=float(low + high) / 2,
            mean=round(self.residues / self.sequences, 3),
            max=int(values[-1]),
        )


def choose_shards(tokens: npt.NDArray[np.int64], shard_tokens: int) -> int:
    """Choose the number of shards: the smallest power of two that keeps them small enough.

    A bucket that is over the limit by itself (one giant sequence, or many copies of one) is left
    out, because no number of shards would make it smaller.

    Args:
        tokens: [BUCKETS] tokens of all sequences by the first two bytes of their key, as a
            little-endian number.
        shard_tokens: tokens that no shard may exceed.

    Returns:
        1 to 65,536.
    """
    divisible = np.where(tokens > shard_tokens, 0, tokens)
    number = 1
    while number < BUCKETS:
        # Bucket b belongs to shard b % number: these are the columns of rows of that length.
        if divisible.reshape(-1, number).sum(axis=0).max() <= shard_tokens:
            break
        number *= 2
    return number


def write_shards(spool: PartitionSpool, number: int, directory: Path, sample: str) -> ShardTotals:
    """Write each shard's distinct sequences; frees the spool's disk space on the way.

    Args:
        spool: sequences of the accepted records.
        number: number of shards, a power of two.
        directory: where ``{name}.fasta`` of each is written; its caller syncs it. A shard's name is
            its number and the first digits of its SHA-256, so a name stands for one content.
        sample: the sample's name, for the bar.
    """
    totals = ShardTotals()
    entries: dict[int, ShardEntry] = {}
    progress = Progress(number, "shards", what=f"{sample}: writing")
    with contextlib.closing(progress):
        for shard, parts in _shard_parts(spool, number):
            digest, lengths = hashlib.sha256(), Counter[int]()
            unnamed = directory / f"{shard:05d}.fasta"
            with atomic_path(unnamed) as temporary, temporary.open("wb") as handle:
                for lines in parts:
                    content = shard_bytes(lines)
                    handle.write(content)
                    digest.update(content)
                    lengths.update(map(len, lines))
            name = shard_name(shard, digest.hexdigest())
            give_name(unnamed, directory / f"{name}.fasta")
            lengths = Counter({size - _FRAME: count for size, count in lengths.items()})
            totals.lengths.update(lengths)
            entries[shard] = ShardEntry(
                name,
                sequences=lengths.total(),
                tokens=sum((length + SPECIAL_TOKENS) * count for length, count in lengths.items()),
                sha256=digest.hexdigest(),
            )
            progress.step(1)
    totals.shards = [entries[shard] for shard in range(number)]
    return totals


def _shard_parts(spool: PartitionSpool, number: int) -> Iterator[tuple[int, Iterable[set[bytes]]]]:
    """Return each shard's distinct sequences in parts, whose keys rise from part to part.

    A shard is some whole partitions, and the order of partitions is that of their keys; or it is
    what belongs to it of one partition. Memory holds one partition.
    """
    for first in range(min(number, PARTITIONS)):
        if number <= PARTITIONS:
            yield first, (_take(spool, each) for each in range(first, PARTITIONS, number))
            continue
        shards: dict[int, set[bytes]] = {shard: set() for shard in range(first, number, PARTITIONS)}
        for line in _take(spool, first):
            bucket = first | int(line[2:4], 16) << 8
            shards[bucket % number].add(line)
        yield from ((shard, [lines]) for shard, lines in shards.items())


def _take(spool: PartitionSpool, partition: int) -> set[bytes]:
    """Read a partition's distinct lines, and free its disk space."""
    lines: set[bytes] = set()
    for block in spool.lines(partition):
        lines.update(block)
    spool.remove(partition)
    return lines


def write_records(
    spool: RecordSpool,
    *,
    renames: Renames,
    shards: int,
    sample: str,
    files: Sequence[str],
    records: Path,
    quarantine: Path,
) -> None:
    """Write accepted records to `records` (Parquet) and the others to `quarantine` (TSV).

    Args:
        spool: the closed spool of all records.
        renames: new ids of records whose id was taken.
        shards: number of shards.
        sample: name of the sample.
        files: names of the input files.
        records: is written in row groups of at most 32,768 records, in input order.
        quarantine: is written in input order.
    """
    first_row, schema = 0, _schema_of(spool)
    repetitive = [name for name in (*_REPETITIVE, *GENE_SCHEMA.names) if name in schema.names]
    with (
        atomic_path(quarantine) as temporary,
        temporary.open("w", encoding="utf-8", newline="") as handle,
        pq.ParquetWriter(records, schema, compression="zstd", use_dictionary=repetitive) as parquet,
    ):
        table = _table_writer(handle)
        table.writerow(QUARANTINE_COLUMNS)
        for batch in spool.batches():
            ids = renames.apply(batch.column("id"), first_row)
            first_row += len(batch)
            batch = batch.set_column(0, "id", ids)
            accepted = pc.equal(batch.column("reason"), "")
            if accepted.true_count:
                parquet.write_batch(_with_shard(batch.filter(accepted), shards, schema))
            if accepted.true_count < len(batch):
                for row in batch.filter(pc.invert(accepted)).to_pylist():
                    row |= {"sample": sample, "file": files[row["file"]]}
                    table.writerow([row[column] for column in QUARANTINE_COLUMNS])


def count_rows(records: Path, quarantine: Path) -> tuple[int, int]:
    """Count the rows of the two files as they are on disk: accepted, quarantined."""
    csv.field_size_limit(1 << 20)
    with quarantine.open(encoding="utf-8", newline="") as handle:
        rows = sum(1 for _ in csv.reader(handle, delimiter="\t", strict=True))
    with pq.ParquetFile(records) as parquet:
        return parquet.metadata.num_rows, rows - 1


def _table_writer(handle: TextIO) -> Any:
    return csv.writer(handle, delimiter="\t", lineterminator="\n")


def _schema_of(spool: RecordSpool) -> pa.Schema:
    """Return the columns of records.parquet: those of genes too, where the records have them."""
    left_out = () if spool.annotated else ANNOTATION_COLUMNS
    fields = [each for each in GENE_SCHEMA if each.name not in left_out]
    return pa.schema([*RECORDS_SCHEMA, *(fields if spool.has_genes else ())])


def _with_shard(batch: pa.RecordBatch, shards: int, schema: pa.Schema) -> pa.RecordBatch:
    """Make a block of records.parquet from spooled records."""
    prefixes = np.frombuffer(b"".join(batch.column("key").to_pylist()), "<u8")[::2]
    columns = {name: batch.column(name) for name in batch.schema.names}
    columns["shard"] = pa.array((prefixes % np.uint64(shards)).astype(np.int32))
    arrays = [columns[field.name].cast(field.type) for field in schema]
    return pa.record_batch(arrays, schema=schema)
