"""The rows of embeddings.h5ad: values of the shards' arrays in the order of the records."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from virnucpro.embed.receipt import ShardReceipt
from virnucpro.errors import DataError
from virnucpro.formats import extra_path
from virnucpro.merge.arrays import all_finite, open_array
from virnucpro.merge.h5ad import H5adWriter, ObsBlock
from virnucpro.merge.ledger import QuarantineRow, count_nul, printable_ids
from virnucpro.merge.provenance import DEMO_NOTICE
from virnucpro.merge.records import RecordBlock, gene_columns, iter_records
from virnucpro.merge.row_index import RowIndex
from virnucpro.merge.shards import Shards
from virnucpro.progress import Progress
from virnucpro.sequences.alphabet import KEY_BYTES
from virnucpro.sequences.manifest import Manifest

__all__ = ["RowCounts", "quarantined_rows", "write_rows"]

logger = logging.getLogger(__name__)

_BLOCK_ROWS = 1 << 15  # a row group of records.parquet
_BLOCK_BYTES = 64 << 20
_OPEN_ARRAYS = 256  # a mapped array keeps a file descriptor, and 1,024 is a common limit

FloatArray = npt.NDArray[np.floating[Any]]
Opener = Callable[[int], FloatArray]  # from a shard's number to its array


@dataclass
class RowCounts:
    """Counts over the records that have an embedding."""

    truncated: int = 0
    normalised: int = 0
    with_nul: int = 0  # ids and descriptions in which a NUL was replaced


def write_rows(
    path: Path,
    manifest: Manifest,
    shards: Shards,
    records: Path,
    *,
    residues: bool,
    request: str,
    uns: Mapping[str, Any],
) -> RowCounts:
    """Write embeddings.h5ad: a row for each record that has an embedding.

    Args:
        path: the file to make; the caller moves it to its final name.
        manifest: of `split`.
        shards: verified.
        records: records.parquet.
        residues: whether to say where each record's residues are in residues.h5.
        request: the id that the file is to carry.
        uns: provenance.

    Raises:
        DataError: an embedding is not finite, or the records changed.
    """
    receipt, rows = shards.receipts[0], int(np.count_nonzero(~shards.index.quarantined))
    optional = [*_optional_columns(shards, residues=residues), *gene_columns(records)]
    writer = H5adWriter(
        path,
        rows=rows,
        dim=receipt.dimension,
        dtype=receipt.dtype,
        layers=receipt.layers,
        sample=manifest.sample,
        uns={"virnucpro": uns},
        optional=optional,
        request=request,
    )
    embeddings = _opener(shards.arrays)
    perplexities = _opener([extra_path(npy, "pseudo_perplexity") for npy in shards.arrays], 1)
    counts = RowCounts()
    progress = Progress(rows, "rows", what=f"{manifest.sample}: writing")
    with writer, closing(progress):
        for numbers, block in _numbered(records, _block_rows(receipt)):
            obs, chosen = _obs_block(block, shards.index, numbers)
            if "pseudo_perplexity" in optional and len(chosen):
                obs.optional["pseudo_perplexity"] = _gather(shards, chosen, perplexities)
            if len(chosen):
                writer.write(obs, _gather(shards, chosen, embeddings))
                progress.step(len(chosen))
            counts.truncated += int(obs.truncated.sum())
            counts.normalised += int(obs.normalised.sum())
            counts.with_nul += count_nul(block.id) + count_nul(block.description)
    _log_counts(counts, demo=receipt.demo)
    return counts


def _optional_columns(shards: Shards, *, residues: bool) -> list[str]:
    scored = "pseudo_perplexity" in shards.receipts[0].extras
    return [
        *(["windows"] if shards.parameters.long_sequences == "window" else []),
        *(["pseudo_perplexity"] if scored else []),
        *(["residues_start", "residues_end"] if residues else []),
        *(["from_close_request"] if any(r.close is not None for r in shards.receipts) else []),
    ]


def _opener(paths: Sequence[Path], dimensions: int = 3) -> Opener:
    @functools.lru_cache(maxsize=_OPEN_ARRAYS)
    def array(shard: int) -> FloatArray:
        # As a plain array: a memmap makes each of many small reads several times slower.
        return np.asarray(open_array(paths[shard], dimensions))

    return array


def _numbered(records: Path, rows: int) -> Iterator[tuple[npt.NDArray[np.int64], RecordBlock]]:
    """Yield blocks of records, each with the records' numbers in the input."""
    first = 0
    for block in iter_records(records, rows):
        numbers = np.arange(first, first + len(block.id))
        first += len(numbers)
        yield numbers, block


def _log_counts(counts: RowCounts, *, demo: bool) -> None:
    if demo:
        logger.warning(DEMO_NOTICE)
    logger.info("%d records truncated, %d normalised", counts.truncated, counts.normalised)
    if counts.with_nul:
        logger.warning(
            "%d ids or descriptions hold a NUL, which HDF5 strings cannot: written as U+2400",
            counts.with_nul,
        )


def _block_rows(receipt: ShardReceipt) -> int:
    """Return the rows of a block: 32,768, or fewer where they would take more than 64 MiB."""
    _, layers, dim = receipt.shape
    row_bytes = layers * dim * np.dtype(receipt.dtype).itemsize
    return int(np.clip(_BLOCK_BYTES // row_bytes, 1, _BLOCK_ROWS))


def _obs_block(
    block: RecordBlock, index: RowIndex, numbers: npt.NDArray[np.int64]
) -> tuple[ObsBlock, npt.NDArray[np.int64]]:
    """Return the columns of `obs` for the records that have an embedding, and their numbers."""
    kept = np.flatnonzero(~index.quarantined[numbers])
    chosen = numbers[kept]
    texts: list[list[Any]] = [
        printable_ids(block.id),
        printable_ids(block.description),
        _hexadecimal(block.key),
    ]
    if len(kept) < len(numbers):
        texts = [[column[index] for index in kept] for column in texts]
    ids, descriptions, keys = texts
    obs = ObsBlock(
        id=ids,
        description=descriptions,
        length=block.length[kept],
        tokens=index.tokens[chosen],
        truncated=index.truncated[chosen],
        normalised=block.normalised[kept],
        replaced=block.replaced[kept],
        unknown_fraction=(block.unknown[kept] / block.length[kept]).astype(np.float32),
        key=keys,
        optional={
            "windows": index.windows[chosen],
            "residues_start": index.residues[chosen, 0],
            "residues_end": index.residues[chosen, 1],
            "from_close_request": index.close[chosen],
            **{name: _of_rows(column, kept) for name, column in block.genes.items()},
        },
    )
    return obs, chosen


def _of_rows(column: Any, rows: npt.NDArray[np.int64]) -> Any:
    """Return some rows of a column of numbers or of texts."""
    if isinstance(column, list):
        texts = printable_ids(column)
        return [texts[row] for row in rows]
    return column[rows]


def _hexadecimal(keys: npt.NDArray[np.bytes_]) -> list[bytes]:
    """Return keys, [n] strings of 16 bytes, as n hexadecimal ones, in ASCII."""
    digits = keys.tobytes().hex().encode()
    found: list[bytes] = np.frombuffer(digits, f"S{2 * KEY_BYTES}").tolist()
    return found


def _gather(shards: Shards, numbers: npt.NDArray[np.int64], array: Opener) -> FloatArray:
    """Collect the values of some records, [n, ...], reading each shard's array once."""
    shard, row = shards.index.shard[numbers], shards.index.row[numbers]
    like = array(0)
    block = np.empty((len(numbers), *like.shape[1:]), dtype=like.dtype)
    # Rows of one shard side by side and increasing, so that the file is read in one direction.
    order = np.lexsort((row, shard))
    for part in np.split(order, np.flatnonzero(np.diff(shard[order])) + 1):
        number = int(shard[part[0]])
        found = array(number)[row[part]]
        block[part] = found
        if all_finite(found):
            continue
        bad = ~np.isfinite(found.reshape(len(found), -1)).all(axis=1)
        raise DataError(
            f"shard {shards.names[number]}: row {row[part][bad][0]} is not finite, and the "
            "receipt does not list it as quarantined",
            hint="remove the shard's .npy and .json and run again",
        )
    return block


def quarantined_rows(manifest: Manifest, shards: Shards, records: Path) -> Iterator[QuarantineRow]:
    """Yield a quarantine row for each record whose sequence has no embedding, in input order."""
    index = shards.index
    if not index.quarantined.any():
        return
    for numbers, block in _numbered(records, _BLOCK_ROWS):
        for place in np.flatnonzero(index.quarantined[numbers]).tolist():
            number = int(numbers[place])
            sequence = shards.quarantined[index.shard[number]][int(index.row[number])]
            yield QuarantineRow(
                sample=manifest.sample,
                id=block.id[place],
                file=manifest.inputs[block.file[place]].path,
                line=str(block.line[place]),
                length=str(block.length[place]),
                reason=sequence.reason,
                detail=sequence.detail,
            )
