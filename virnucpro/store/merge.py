"""Merges the shards of a sample into embeddings.h5ad, and accounts for every record.

The order of the work: check that all shards are there and belong together, place every record,
write both result files under temporary names, count what is in them, and only then give them their
names. A merge that fails leaves an earlier result as it was.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from virnucpro.errors import DataError, InputError
from virnucpro.files import atomic_path
from virnucpro.progress import Progress
from virnucpro.sequences.alphabet import KEY_BYTES
from virnucpro.store.exports import check_exports, export
from virnucpro.store.h5ad import H5adWriter, ObsBlock
from virnucpro.store.ledger import (
    check_ledger,
    count_nul,
    printable_id,
    printable_ids,
    read_quarantine,
    write_quarantine,
)
from virnucpro.store.provenance import DEMO_NOTICE, provenance
from virnucpro.store.receipts import open_embeddings
from virnucpro.store.records import Places, iter_id_blocks, iter_records
from virnucpro.store.shards import (
    Shards,
    check_written_by_split,
    read_manifest,
    verify_shards,
)

__all__ = ["merge"]

logger = logging.getLogger(__name__)

_BLOCK_ROWS = 1 << 15  # a row group of records.parquet
_BLOCK_BYTES = 64 << 20
# All ones in a float's exponent, and only there: infinite or not a number.
_EXPONENTS: dict[int, np.unsignedinteger[Any]] = {2: np.uint16(0x7C00), 4: np.uint32(0x7F800000)}
_OPEN_ARRAYS = 256  # a mapped array keeps a file descriptor, and 1,024 is a common limit


def merge(
    *,
    shards_dir: Path,
    records: Path,
    plans_dir: Path,
    embeddings_dir: Path,
    output: Path,
    quarantine: Path,
    exports: Mapping[str, Path] | None = None,
) -> dict[str, Any]:
    """Merge the shards of a sample; rows stand in the order of the input's records.

    Memory does not grow with the dimension: about 50 bytes a record and one shard's plan.

    Args:
        shards_dir: manifest.json and the quarantine table of `split`.
        records: records.parquet of `split`.
        plans_dir: ``{shard}.parquet`` of every shard.
        embeddings_dir: ``{shard}.npy`` and ``{shard}.json`` of every shard.
        output: embeddings.h5ad.
        quarantine: the final quarantine table.
        exports: kind -> file, see `virnucpro.store.exports`.

    Returns:
        Counts of records: read, embedded, quarantined, and among the embedded ones: truncated,
        normalised, with_nul (a NUL in id or description was replaced).

    Raises:
        DataError: a shard is missing, damaged or of another run; or the ledger does not balance.
        InputError: an export cannot be made, or files have another format number.
    """
    exports = exports or {}
    split_quarantine = shards_dir / "quarantine.tsv"
    if quarantine.resolve() == split_quarantine.resolve():
        raise InputError("would overwrite the quarantine table of split", path=quarantine)
    check_exports(exports, itertools.chain.from_iterable(iter_id_blocks(records)))
    manifest = read_manifest(shards_dir)
    if "quarantine_sha256" in manifest:  # not in those of earlier versions
        check_written_by_split(split_quarantine, manifest["quarantine_sha256"])

    def expected() -> Iterator[str]:
        for ids in iter_id_blocks(records):
            yield from printable_ids(ids)
        for row in read_quarantine(split_quarantine):
            yield printable_id(row["id"])

    # First, so that a folder that cannot be written to shows before every shard is hashed.
    with atomic_path(output) as new_output, atomic_path(quarantine) as new_quarantine:
        shards = verify_shards(
            manifest, records=records, plans_dir=plans_dir, embeddings_dir=embeddings_dir
        )
        counts = _write_h5ad(new_output, manifest, shards, records, embeddings_dir)
        rows = _quarantined_rows(manifest, shards, records)
        write_quarantine(new_quarantine, itertools.chain(read_quarantine(split_quarantine), rows))
        read = int(manifest["records"]["read"])
        embedded, refused = check_ledger(new_output, new_quarantine, read=read, expected=expected)
    logger.info("%s: %d records = %d embedded + %d quarantined", output, read, embedded, refused)
    for kind, target in exports.items():
        export(kind, output, target)
        logger.info("%s: exported as %s", target, kind)
    return {"read": read, "embedded": embedded, "quarantined": refused, **counts}


def _write_h5ad(
    path: Path,
    manifest: dict[str, Any],
    shards: Shards,
    records: Path,
    embeddings_dir: Path,
) -> dict[str, int]:
    """Write the rows of all records that have an embedding."""
    receipt = shards.receipts[0]
    kept = int(np.count_nonzero(~shards.places.quarantined))
    counts = {"truncated": 0, "normalised": 0, "with_nul": 0}
    writer = H5adWriter(
        path,
        rows=kept,
        dim=receipt["shape"][2],
        dtype=receipt["dtype"],
        layers=receipt["layers"],
        sample=manifest["sample"],
        uns={"virnucpro": provenance(manifest, shards.receipts, shards.plan)},
    )

    @functools.lru_cache(maxsize=_OPEN_ARRAYS)
    def array(shard: int) -> npt.NDArray[np.floating[Any]]:
        # As a plain array: a memmap makes each of many small reads several times slower.
        return np.asarray(open_embeddings(embeddings_dir / f"{shards.names[shard]}.npy"))

    first = 0
    progress = Progress(kept, "rows", what=f"{manifest['sample']}: writing")
    with writer, contextlib.closing(progress):
        for block in iter_records(records, _block_rows(receipt)):
            numbers = np.arange(first, first + len(block["id"]))
            first += len(numbers)
            obs, numbers = _obs_block(block, shards.places, numbers)
            if len(numbers):
                writer.write(obs, _gather(shards, numbers, array))
                progress.step(len(numbers))
            counts["truncated"] += int(obs.truncated.sum())
            counts["normalised"] += int(obs.normalised.sum())
            counts["with_nul"] += count_nul(block["id"]) + count_nul(block["description"])
    _log_counts(counts, receipt)
    return counts


def _log_counts(counts: dict[str, int], receipt: dict[str, Any]) -> None:
    if receipt["demo"]:
        logger.warning(DEMO_NOTICE)
    logger.info("%(truncated)d records truncated, %(normalised)d normalised", counts)
    if counts["with_nul"]:
        logger.warning(
            "%d ids or descriptions hold a NUL, which HDF5 strings cannot: written as U+2400",
            counts["with_nul"],
        )


def _block_rows(receipt: dict[str, Any]) -> int:
    """Give the rows of a block: 32,768, or fewer where they would take more than 64 MiB."""
    _, layers, dim = receipt["shape"]
    row_bytes = layers * dim * np.dtype(receipt["dtype"]).itemsize
    return int(np.clip(_BLOCK_BYTES // row_bytes, 1, _BLOCK_ROWS))


def _obs_block(
    block: dict[str, Any], places: Places, numbers: npt.NDArray[np.int64]
) -> tuple[ObsBlock, npt.NDArray[np.int64]]:
    """Make the columns of `obs` for the records that have an embedding, and give their numbers."""
    kept = np.flatnonzero(~places.quarantined[numbers])
    chosen = numbers[kept]
    texts: dict[str, list[Any]] = {
        name: printable_ids(block[name]) for name in ("id", "description")
    }
    texts["key"] = _hexadecimal(block["key"])
    if len(kept) < len(numbers):
        texts = {name: [column[index] for index in kept] for name, column in texts.items()}
    return (
        ObsBlock(
            ids=texts["id"],
            descriptions=texts["description"],
            lengths=block["length"][kept],
            tokens=places.tokens[chosen],
            truncated=places.truncated[chosen],
            normalised=block["normalised"][kept],
            replaced=block["replaced"][kept],
            keys=texts["key"],
        ),
        chosen,
    )


def _hexadecimal(keys: npt.NDArray[np.bytes_]) -> list[bytes]:
    """Give keys, [n] strings of 16 bytes, as n hexadecimal ones, in ASCII."""
    digits = keys.tobytes().hex().encode()
    found: list[bytes] = np.frombuffer(digits, f"S{2 * KEY_BYTES}").tolist()
    return found


def _gather(
    shards: Shards,
    numbers: npt.NDArray[np.int64],
    array: Callable[[int], npt.NDArray[np.floating[Any]]],
) -> npt.NDArray[np.floating[Any]]:
    """Collect the embeddings of some records, [n, layers, dim], reading each shard once."""
    shard, row = shards.places.shard[numbers], shards.places.row[numbers]
    _, layers, dim = shards.receipts[0]["shape"]
    block = np.empty((len(numbers), layers, dim), dtype=shards.receipts[0]["dtype"])
    # Rows of one shard side by side and rising, so that the file is read in one direction.
    order = np.lexsort((row, shard))
    for part in np.split(order, np.flatnonzero(np.diff(shard[order])) + 1):
        number = int(shard[part[0]])
        found = array(number)[row[part]]
        block[part] = found
        if _all_finite(found):
            continue
        bad = ~np.isfinite(found).all(axis=(1, 2))
        raise DataError(
            f"shard {shards.names[number]}: row {row[part][bad][0]} is not finite, and the "
            "receipt does not list it as quarantined",
            hint="remove the shard's .npy and .json and run again",
        )
    return block


def _all_finite(values: npt.NDArray[np.floating[Any]]) -> bool:
    """Say whether all values are finite, by their bits: of float16 numpy looks at one at a time."""
    exponent = _EXPONENTS[values.itemsize]
    return bool((values.view(exponent.dtype) & exponent).max(initial=0) < exponent)


def _quarantined_rows(
    manifest: dict[str, Any], shards: Shards, records: Path
) -> Iterator[dict[str, str]]:
    """Yield a quarantine row for each record whose sequence has no embedding, in input order."""
    places = shards.places
    if not places.quarantined.any():
        return
    first = 0
    for block in iter_records(records):
        numbers = np.arange(first, first + len(block["id"]))
        first += len(numbers)
        for index in np.flatnonzero(places.quarantined[numbers]).tolist():
            number = int(numbers[index])
            reason, detail = shards.quarantined[places.shard[number]][int(places.row[number])]
            yield {
                "sample": manifest["sample"],
                "id": block["id"][index],
                "file": manifest["inputs"][block["file"][index]]["path"],
                "line": str(block["line"][index]),
                "length": str(block["length"][index]),
                "reason": reason,
                "detail": detail,
            }
