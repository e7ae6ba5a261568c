"""Merges the shards of a sample into embeddings.h5ad, and accounts for every record.

The order of the work: check that all shards are there and belong together, place every record,
write both result files under temporary names, count what is in them, and only then give them their
names. A merge that fails leaves an earlier result as it was.
"""

from __future__ import annotations

import functools
import itertools
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from virnucpro.errors import DataError, InputError
from virnucpro.files import atomic_path
from virnucpro.formats import extra_path
from virnucpro.merge.exports import FAIR_ESM_NAMES, check_exports, export
from virnucpro.merge.h5ad import H5adWriter, ObsBlock
from virnucpro.merge.ledger import (
    check_ledger,
    count_nul,
    printable_id,
    printable_ids,
    read_quarantine,
    write_quarantine,
)
from virnucpro.merge.provenance import DEMO_NOTICE, provenance
from virnucpro.merge.receipts import all_finite, open_array
from virnucpro.merge.records import Places, iter_id_blocks, iter_records
from virnucpro.merge.requests import check_request, read_request
from virnucpro.merge.residues import write_residues
from virnucpro.merge.shards import (
    Shards,
    check_written_by_split,
    read_manifest,
    verify_shards,
)
from virnucpro.progress import Progress
from virnucpro.sequences.alphabet import KEY_BYTES

__all__ = ["merge_sample"]

logger = logging.getLogger(__name__)

_BLOCK_ROWS = 1 << 15  # a row group of records.parquet
_BLOCK_BYTES = 64 << 20
_OPEN_ARRAYS = 256  # a mapped array keeps a file descriptor, and 1,024 is a common limit


def merge_sample(
    *,
    shards_dir: Path,
    records: Path,
    plans_dir: Path,
    embeddings_dir: Path,
    output: Path,
    quarantine: Path,
    residues: Path | None = None,
    exports: Mapping[str, Path] | None = None,
    request: Path | None = None,
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
        residues: residues.h5, where the shards have the residues.
        exports: kind -> file, see `virnucpro.merge.exports`.
        request: what `virnucpro.merge.requests.withdraw` wrote; the file carries its id, and is not
            put in place where the request was withdrawn meanwhile.

    Returns:
        Counts of records: read, embedded, quarantined, and among the embedded ones: truncated,
        normalised, with_nul (a NUL in id or description was replaced).

    Raises:
        DataError: a shard is missing, damaged or of another run; or the ledger does not balance.
        InputError: an export cannot be made, the shards have no residues that were asked for, or
            files have another format number.
    """
    exports = exports or {}
    split_quarantine = shards_dir / "quarantine.tsv"
    if quarantine.resolve() == split_quarantine.resolve():
        raise InputError("would overwrite the quarantine table of split", path=quarantine)
    request_id = "" if request is None else read_request(request)
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
    with ExitStack() as stack:
        new_output, new_quarantine = (
            stack.enter_context(atomic_path(path)) for path in (output, quarantine)
        )
        new_residues = stack.enter_context(atomic_path(residues)) if residues else None
        shards = verify_shards(
            manifest, records=records, plans_dir=plans_dir, embeddings_dir=embeddings_dir
        )
        _check_outputs(shards, residues, exports)
        counts = _write_h5ad(
            *(new_output, manifest, shards, records, embeddings_dir),
            residues=new_residues is not None,
            request=request_id,
        )
        if new_residues is not None:
            write_residues(
                *(new_residues, new_output, shards),
                sample=manifest["sample"],
                plans_dir=plans_dir,
                embeddings_dir=embeddings_dir,
            )
        rows = _quarantined_rows(manifest, shards, records)
        write_quarantine(new_quarantine, itertools.chain(read_quarantine(split_quarantine), rows))
        read = int(manifest["records"]["read"])
        embedded, refused = check_ledger(new_output, new_quarantine, read=read, expected=expected)
        if request is not None:
            check_request(request)
    logger.info("%s: %d records = %d embedded + %d quarantined", output, read, embedded, refused)
    for kind, target in exports.items():
        export(kind, output, target)
        logger.info("%s: exported as %s", target, kind)
    return {"read": read, "embedded": embedded, "quarantined": refused, **counts}


def _check_outputs(shards: Shards, residues: Path | None, exports: Mapping[str, Path]) -> None:
    """Refuse outputs that these shards cannot give."""
    pooling = shards.receipts[0]["pooling"]
    if "fair-esm" in exports and pooling not in FAIR_ESM_NAMES:
        raise InputError(
            f"fair-esm's files have no vectors of pooling {pooling}",
            path=exports["fair-esm"],
            hint="leave out the export fair-esm, or pool by mean or cls",
        )
    if residues is not None and shards.residues is None:
        raise InputError(
            "the shards have no residues", path=residues, hint="embed them with --pooling=none"
        )


def _write_h5ad(
    path: Path,
    manifest: dict[str, Any],
    shards: Shards,
    records: Path,
    embeddings_dir: Path,
    *,
    residues: bool,
    request: str,
) -> dict[str, int]:
    """Write the rows of all records that have an embedding; `residues`: say where theirs are."""
    receipt = shards.receipts[0]
    kept = int(np.count_nonzero(~shards.places.quarantined))
    counts = {"truncated": 0, "normalised": 0, "with_nul": 0}
    optional = [
        *(["windows"] if shards.plan["long_sequences"] == "window" else []),
        *(["pseudo_perplexity"] if "pseudo_perplexity" in receipt["extras"] else []),
        *(["residues_start", "residues_end"] if residues else []),
    ]
    writer = H5adWriter(
        path,
        rows=kept,
        dim=receipt["shape"][2],
        dtype=receipt["dtype"],
        layers=receipt["layers"],
        sample=manifest["sample"],
        uns={"virnucpro": provenance(manifest, shards.receipts, shards.plan)},
        optional=optional,
        request=request,
    )

    @functools.lru_cache(maxsize=_OPEN_ARRAYS)
    def array(shard: int) -> npt.NDArray[np.floating[Any]]:
        # As a plain array: a memmap makes each of many small reads several times slower.
        return np.asarray(open_array(embeddings_dir / f"{shards.names[shard]}.npy"))

    @functools.lru_cache(maxsize=_OPEN_ARRAYS)
    def perplexity(shard: int) -> npt.NDArray[np.floating[Any]]:
        npy = embeddings_dir / f"{shards.names[shard]}.npy"
        return np.asarray(open_array(extra_path(npy, "pseudo_perplexity"), 1))

    first = 0
    progress = Progress(kept, "rows", what=f"{manifest['sample']}: writing")
    with writer, closing(progress):
        for block in iter_records(records, _block_rows(receipt)):
            numbers = np.arange(first, first + len(block["id"]))
            first += len(numbers)
            obs, numbers = _obs_block(block, shards.places, numbers)
            places = shards.places.residues[numbers]
            obs.optional.update(
                windows=shards.places.windows[numbers],
                residues_start=places[:, 0],
                residues_end=places[:, 1],
            )
            if "pseudo_perplexity" in optional and len(numbers):
                obs.optional["pseudo_perplexity"] = _gather(shards, numbers, perplexity)
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
            unknown_fractions=(block["unknown"][kept] / block["length"][kept]).astype(np.float32),
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
    """Collect the values of some records, [n, ...], reading each shard's array once."""
    shard, row = shards.places.shard[numbers], shards.places.row[numbers]
    like = array(0)
    block = np.empty((len(numbers), *like.shape[1:]), dtype=like.dtype)
    # Rows of one shard side by side and rising, so that the file is read in one direction.
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
