"""Contigs of one file to genes: read, find in several processes, write in the order of the file."""

from __future__ import annotations

import gzip
import hashlib
import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from virnucpro.errors import DataError, InputError
from virnucpro.files import atomic_path, sha256_of
from virnucpro.genes.cache import GenesCache
from virnucpro.genes.contigs import CHANGES, CONTIGS_SCHEMA, STATUSES, Contig, read_contigs
from virnucpro.genes.finder import FoundGenes, find_genes, finder_versions
from virnucpro.genes.receipt import (
    SUFFIXES,
    GenesParameters,
    GenesReceipt,
    beside,
    write_receipt,
)
from virnucpro.genes.workers import in_order
from virnucpro.progress import Progress
from virnucpro.sequences.manifest import InputFile

__all__ = ["genes_of_file"]

logger = logging.getLogger(__name__)

_BATCH_BASES = 200_000  # about a second of work
_BATCH_CONTIGS = 1_000
_ROW_GROUP = 1 << 15
_NOTHING = FoundGenes(b"", b"", 0, 0, 0, 0)

Numbered = tuple[int, Contig]  # with the contig's number in the file, from 1


def genes_of_file(
    contigs: Path,
    prefix: Path,
    *,
    parameters: GenesParameters,
    processes: int = 1,
    cache_dir: Path | None = None,
    sha256: str | None = None,
) -> GenesReceipt:
    """Find the genes of a FASTA file of contigs, or take them from the cache, and write them.

    The same file gives the same bytes, with any number of processes.

    Args:
        contigs: nucleotides, plain or compressed.
        prefix: gets ``.faa.gz``, ``.gff.gz``, ``.contigs.parquet`` and, last, ``.json``.
        parameters: how genes are found.
        processes: that find genes at once.
        cache_dir: the cache folder; None for no cache.
        sha256: what the file's bytes have to be.

    Returns:
        The receipt, as it was written.

    Raises:
        InputError: the file is not FASTA, holds proteins, or pyrodigal-gv is missing.
        DataError: the file changed while it was read, or is not what `sha256` says.
        OSError: a file cannot be written.
    """
    parameters.check()
    programs = finder_versions()
    if not contigs.is_file():
        raise InputError("does not exist, or is no file", path=contigs)
    found = sha256_of(contigs)
    if sha256 is not None and found != sha256:
        raise _changed(contigs)
    cache = None if cache_dir is None else GenesCache(cache_dir, found, parameters, programs)
    receipt = cache.get(prefix, str(contigs)) if cache else None
    if cache:
        logger.info("genes cache %s %s", "hit" if receipt else "miss", cache.address)
    if receipt is None:
        receipt = _find(contigs, prefix, parameters, programs, processes)
        if receipt.input.sha256 != found:
            raise _changed(contigs)
        write_receipt(prefix, receipt)
        if cache:
            cache.put(prefix, receipt)
    _log(receipt)
    return receipt


def _changed(path: Path) -> DataError:
    return DataError(
        "changed while it was read, or since the workflow was",
        path=path,
        hint="run the same command again, once nothing writes to the file any more",
    )


def _find(
    path: Path,
    prefix: Path,
    parameters: GenesParameters,
    programs: dict[str, str],
    processes: int,
) -> GenesReceipt:
    """Find the genes, and write all but the receipt."""
    raw = _Passed(Progress(path.stat().st_size, "bytes", what=f"{path.name}: finding genes"))
    contigs = read_contigs(path, max_contig_bases=parameters.max_contig_bases, digest=raw)
    changes: Counter[str] = Counter(dict.fromkeys(CHANGES, 0))
    statuses: Counter[str] = Counter(dict.fromkeys(STATUSES, 0))
    rows: list[dict[str, Any]] = []
    with ExitStack() as stack:
        stack.enter_context(closing(raw.progress))
        targets = [stack.enter_context(atomic_path(beside(prefix, each))) for each in SUFFIXES]
        faa, gff = (stack.enter_context(closing(_Gzip(target))) for target in targets[:2])
        table = stack.enter_context(pq.ParquetWriter(targets[2], CONTIGS_SCHEMA))
        gff.write(b"##gff-version 3\n")
        for (_, contig), found in in_order(_work, _batches(contigs), processes):
            faa.write(found.faa)
            gff.write(found.gff)
            rows.append(_row(contig, found))
            statuses[rows[-1]["status"]] += 1
            changes.update(dict(zip(CHANGES, contig.changes, strict=True)))
            if len(rows) == _ROW_GROUP:
                table.write_table(pa.Table.from_pylist(rows, CONTIGS_SCHEMA))
                rows.clear()
        table.write_table(pa.Table.from_pylist(rows, CONTIGS_SCHEMA))
        _refuse_proteins(path, statuses)
        for each in (faa, gff, table):
            each.close()
        files = dict(zip(SUFFIXES, map(sha256_of, targets), strict=True))
    return GenesReceipt(
        input=InputFile(str(path), raw.count, raw.sha256.hexdigest(), statuses.total()),
        parameters=parameters,
        programs=programs,
        genes=faa.lines // 2,
        statuses=dict(statuses),
        changes=dict(changes),
        files=files,
    )


class _Passed:
    """Counts and hashes a file as it passes."""

    def __init__(self, progress: Progress) -> None:
        self.progress, self.count, self.sha256 = progress, 0, hashlib.sha256()

    def update(self, data: bytes, /) -> None:
        self.count += len(data)
        self.sha256.update(data)
        self.progress.step(len(data))


class _Gzip:
    """Writes a gzip file whose bytes depend on neither time nor name, and counts its lines."""

    def __init__(self, path: Path) -> None:
        self._raw = path.open("wb")
        self._file = gzip.GzipFile("", "wb", 6, self._raw, mtime=0)
        self.lines = 0

    def write(self, data: bytes) -> None:
        self.lines += data.count(b"\n")
        self._file.write(data)

    def close(self) -> None:
        self._file.close()
        self._raw.close()


def _batches(contigs: Iterable[Contig]) -> Iterator[list[Numbered]]:
    """Cut contigs into batches of about the same work."""
    batch: list[Numbered] = []
    bases = 0
    for numbered in enumerate(contigs, 1):
        batch.append(numbered)
        bases += len(numbered[1].bases)
        if bases >= _BATCH_BASES or len(batch) >= _BATCH_CONTIGS:
            yield batch
            batch, bases = [], 0
    if batch:
        yield batch


def _work(batch: list[Numbered]) -> list[FoundGenes]:
    return [
        find_genes(number, contig.id, contig.bases) if contig.bases else _NOTHING
        for number, contig in batch
    ]


def _row(contig: Contig, found: FoundGenes) -> dict[str, Any]:
    """Make a contig's row of the table."""
    return {
        "id": contig.id,
        "line": contig.line,
        "length": contig.length,
        "gc": contig.gc,
        "n_fraction": contig.n_fraction,
        "genes": found.genes,
        "partial": found.partial,
        "coding_fraction": found.coding / contig.length if contig.bases else None,
        "genetic_code": found.genetic_code,
        "status": "no_genes" if contig.bases and not found.genes else contig.status,
    }


def _refuse_proteins(path: Path, statuses: Counter[str]) -> None:
    """Refuse a file of which no contig is of nucleotides."""
    if statuses["invalid_letters"] and statuses["invalid_letters"] == statuses.total():
        raise InputError(
            f"none of its {statuses.total()} records is of nucleotides",
            path=path,
            hint="proteins are input_type: protein, or genes with the headers of Prodigal",
        )


def _log(receipt: GenesReceipt) -> None:
    statuses = ", ".join(f"{name}: {count}" for name, count in receipt.statuses.items() if count)
    logger.info(
        "%s: %d genes on %d contigs (%s)",
        *(receipt.input.path, receipt.genes, receipt.input.records, statuses),
    )
    changes = ", ".join(f"{name}: {count}" for name, count in receipt.changes.items() if count)
    if changes:
        logger.info("letters of contigs: %s", changes)
    if not receipt.genes:
        logger.warning("%s: no gene was found", receipt.input.path)
