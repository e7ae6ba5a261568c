"""contigs.tsv: each contig of the input is one row; and the ledger of contigs and their genes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from virnucpro.errors import DataError
from virnucpro.genes.contigs import CONTIGS_SCHEMA
from virnucpro.genes.receipt import GenesReceipt, beside, read_receipt
from virnucpro.merge.ledger import printable_id
from virnucpro.merge.records import iter_lines
from virnucpro.merge.row_index import RowIndex
from virnucpro.merge.tables import read_table, write_table
from virnucpro.sequences.manifest import Manifest

__all__ = [
    "COLUMNS",
    "ContigCounts",
    "check_contigs",
    "count_genes",
    "iter_contigs",
    "write_contigs",
]

COLUMNS = (
    *("id", "file", "line", "length", "gc", "n_fraction", "genes", "embedded", "partial"),
    *("coding_fraction", "genetic_code", "status"),
)
"""Columns of contigs.tsv."""

_TABLE = ".contigs.parquet"
_DIGITS = 6  # of fractions
_BLOCK = 8192
_LINES = 2  # of a gene in the FASTA files that `virnucpro genes` writes: header and residues


@dataclass(frozen=True)
class ContigCounts:
    """The contigs of a sample's files, in the order of the input."""

    prefixes: Sequence[Path]  # of each file's genes
    receipts: Sequence[GenesReceipt]
    genes: npt.NDArray[np.int64]  # [contigs] found
    embedded: npt.NDArray[np.int64]  # [contigs] genes that are a row of embeddings.h5ad


def count_genes(
    prefixes: Sequence[Path], manifest: Manifest, records: Path, index: RowIndex
) -> ContigCounts:
    """Count each contig's genes, found and embedded.

    Args:
        prefixes: of the files that `virnucpro genes` wrote, in the order of split's inputs.
        manifest: of `split`.
        records: records.parquet.
        index: of the records.

    Raises:
        DataError: `split` read other files, or their genes don't add up.
    """
    receipts = [read_receipt(prefix, verify=(_TABLE,)) for prefix in prefixes]
    read = [(file.sha256, file.records) for file in manifest.inputs]
    written = [(receipt.files[".faa.gz"], receipt.genes) for receipt in receipts]
    if read != written:
        raise DataError(
            f"ledger: split read {sum(count for _, count in read)} genes of {len(read)} files, "
            f"{sum(count for _, count in written)} were found on the contigs of {len(written)}, "
            "or the files are others",
            hint="remove the sample's genes and splits and run again",
        )
    found = [_read_counts(prefix, each) for prefix, each in zip(prefixes, receipts, strict=True)]
    genes = np.concatenate([*found, np.empty(0, np.int64)])
    ends = np.cumsum(genes)
    begins = np.cumsum([0, *(receipt.genes for receipt in receipts)])
    embedded = np.zeros(len(genes), np.int64)
    first = 0
    for file, line in iter_lines(records):
        kept = ~index.quarantined[first : first + len(line)]
        first += len(line)
        # A gene's line tells how many are before it, and so on which contig it is.
        number = begins[file] + (line - 1) // _LINES
        contig = np.searchsorted(ends, number[kept], side="right")
        np.add.at(embedded, contig, 1)
    return ContigCounts(prefixes, receipts, genes, embedded)


def _read_counts(prefix: Path, receipt: GenesReceipt) -> npt.NDArray[np.int64]:
    """Read the genes of each contig of a file, and compare them with the receipt."""
    path = beside(prefix, _TABLE)
    column = pq.read_table(path, columns=["genes"]).column(0)
    counts = np.asarray(column.combine_chunks().to_numpy(zero_copy_only=False), np.int64)
    if len(counts) != receipt.input.records or counts.sum() != receipt.genes:
        raise DataError(
            f"ledger: {receipt.input.records} contigs were read and {receipt.genes} genes found, "
            f"but {len(counts)} and {counts.sum()} are in the table",
            path=path,
            hint="remove the sample's genes and run again",
        )
    return counts


def iter_contigs(counts: ContigCounts) -> Iterator[dict[str, Any]]:
    """Yield the rows of contigs.tsv, in the order of the input."""
    embedded = iter(counts.embedded.tolist())
    for prefix, receipt in zip(counts.prefixes, counts.receipts, strict=True):
        with pq.ParquetFile(beside(prefix, _TABLE)) as file:
            for batch in file.iter_batches(_BLOCK, columns=CONTIGS_SCHEMA.names):
                for row in batch.to_pylist():
                    yield row | {"file": receipt.input.path, "embedded": next(embedded)}


def write_contigs(path: Path, counts: ContigCounts) -> None:
    """Write contigs.tsv; the same contigs give the same bytes."""
    write_table(
        path,
        COLUMNS,
        (
            [
                round(value, _DIGITS) if isinstance(value, float) else value
                for value in (row[name] for name in COLUMNS)
            ]
            for row in iter_contigs(counts)
        ),
    )


def check_contigs(tsv: Path, h5ad: Path, counts: ContigCounts, manifest: Manifest) -> None:
    """Open the files that were written, and account for every contig and its genes.

    Args:
        tsv: contigs.tsv.
        h5ad: embeddings.h5ad, whose rows are in the order of the contigs.
        counts: of the contigs.
        manifest: of `split`.

    Raises:
        DataError: a contig is missing or doubled, or genes don't add up; the first is named.
    """
    rows = genes = embedded = 0
    with h5py.File(h5ad, "r") as handle:
        named = _contig_runs(handle["obs/contig"])
        for row in read_table(tsv, COLUMNS):
            rows, genes = rows + 1, genes + int(row["genes"])
            for _ in range(int(row["embedded"])):
                embedded += 1
                if next(named, None) != printable_id(row["id"]):
                    raise DataError(
                        f"ledger: row {embedded} of embeddings.h5ad is not of contig "
                        f"{row['id']!r}, where contigs.tsv has it"
                    )
        total = len(handle["obs/contig"])
    expected = sum(receipt.input.records for receipt in counts.receipts)
    if (rows, genes, embedded) != (expected, manifest.records.read, total):
        raise DataError(
            f"ledger: {expected} contigs were read, {rows} are in contigs.tsv; "
            f"{manifest.records.read} genes were read by split, {genes} are there; {total} are "
            f"embedded, {embedded} are there",
            hint="remove the sample's results and run again",
        )


def _contig_runs(column: h5py.Dataset) -> Iterator[str]:
    for start in range(0, len(column), _BLOCK):
        yield from map(bytes.decode, column[start : start + _BLOCK])
