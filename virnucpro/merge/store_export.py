"""An embeddings.h5ad of what a store knows of some FASTA files, without computing anything.

The way is that of the workflow: split, plan, the shards' arrays (here from the store), merge. So
the file is the one that the workflow gives; sequences that the store does not know are quarantined.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from virnucpro import __version__
from virnucpro.embed.receipt import Quarantined, ShardReceipt, write_receipt
from virnucpro.errors import InputError
from virnucpro.files import atomic_path, scratch_directory, sha256_of
from virnucpro.formats import extra_path
from virnucpro.merge.sample import MergeCounts, merge_sample
from virnucpro.plan.build import plan_shard
from virnucpro.plan.parameters import PlanParameters
from virnucpro.plan.plan import read_plan
from virnucpro.quarantine import Reason
from virnucpro.sequences.alphabet import SPECIAL_TOKENS
from virnucpro.sequences.fasta import read_fasta
from virnucpro.sequences.record import Record
from virnucpro.sequences.split import split
from virnucpro.store.request import Request
from virnucpro.store.store import Filled, Known, Store

__all__ = ["export_h5ad"]

_TOKEN_BUDGET = 4096  # of plans whose batches are not computed
_EXAMPLES = 10


def export_h5ad(
    store: Store,
    request: Request,
    fastas: Sequence[Path],
    *,
    output: Path,
    quarantine: Path,
    sample: str,
    ids: Collection[str] | None = None,
) -> MergeCounts:
    """Write an embeddings.h5ad of the records of FASTA files from a store.

    Args:
        store: where the rows are.
        request: what they were computed with.
        fastas: files whose records are wanted.
        output: embeddings.h5ad.
        quarantine: table of the records left out, with reason ``not_in_store`` for those that the
            store does not know.
        sample: name of the sample, in both files.
        ids: the records that are wanted; None for all.

    Returns:
        The records.

    Raises:
        InputError: the store has no rows of the request, an id is not in the files, or a file
            cannot be used.
        OSError: a file cannot be written.
    """
    with scratch_directory(output) as scratch:
        if ids is not None:
            fastas = [_choose(fastas, set(ids), scratch / "chosen.faa")]
        shards, records, plans = scratch / "shards", scratch / "records.parquet", scratch / "plans"
        manifest = split(fastas, sample=sample, shards_dir=shards, records=records)
        longest = request.max_sequence_length
        parameters = PlanParameters(
            max(_TOKEN_BUDGET, longest + SPECIAL_TOKENS),
            longest,
            request.long_sequences,
            request.window_overlap,
        )
        for name in manifest.names:
            plan = plans / f"{name}.parquet"
            plan_shard(shards / f"{name}.fasta", plan, plans / f"{name}.json", parameters)
            _write_shard(scratch / "embeddings" / f"{name}.npy", plan, store, request)
        return merge_sample(
            shards_dir=shards,
            records=records,
            plans_dir=plans,
            embeddings_dir=scratch / "embeddings",
            output=output,
            quarantine=quarantine,
        )


def _choose(fastas: Sequence[Path], ids: set[str], chosen: Path) -> Path:
    """Write the records that have one of some ids as FASTA."""
    missing = set(ids)
    with atomic_path(chosen) as temporary, temporary.open("wb") as handle:
        for record in _records(fastas):
            if record.id in ids:
                missing.discard(record.id)
                header = f">{record.id} {record.description}".rstrip()
                handle.write(header.encode(errors="surrogateescape") + b"\n")
                handle.write(record.residues + b"\n")
    if missing:
        listed = ", ".join(sorted(missing)[:_EXAMPLES])
        raise InputError(
            f"{len(missing)} ids are not in the FASTA files: {listed}"
            f"{', ...' if len(missing) > _EXAMPLES else ''}",
            hint="an id is a header's first word",
        )
    return chosen


def _records(fastas: Sequence[Path]) -> Iterator[Record]:
    for path in fastas:
        yield from read_fasta(path)


def _write_shard(npy: Path, plan_path: Path, store: Store, request: Request) -> None:
    """Write a shard's arrays and their receipt, as `embed` does, of what the store has."""
    plan = read_plan(plan_path)
    keys = plan.sequence_keys
    known = store.look_up(request, keys)
    shape = (len(keys), *_row_shape(known))
    extras = [name for name in request.arrays if name != "embeddings"]
    with atomic_path(npy) as temporary:
        arrays: dict[str, npt.NDArray[Any]] = {
            "embeddings": np.lib.format.open_memmap(
                temporary, mode="w+", dtype=np.dtype(request.output_dtype), shape=shape
            )
        }
        arrays["embeddings"][:] = np.nan
        arrays |= {name: np.full(len(keys), np.nan) for name in extras}
        filled = store.fill(known, arrays)
        del arrays["embeddings"]  # written by then
    for name, array in arrays.items():
        with atomic_path(extra_path(npy, name)) as temporary, temporary.open("wb") as handle:
            np.save(handle, array, allow_pickle=False)
    receipt = _receipt(npy, plan.content_hash, request, keys, shape, filled)
    write_receipt(npy.with_suffix(".json"), receipt)


def _receipt(
    npy: Path,
    plan_hash: str,
    request: Request,
    keys: npt.NDArray[np.uint8],
    shape: Sequence[int],
    filled: Filled,
) -> ShardReceipt:
    """Return the receipt of a shard that was not computed."""
    extras = [name for name in request.arrays if name != "embeddings"]
    missing = np.flatnonzero(~filled.filled).tolist()
    return ShardReceipt(
        shard=npy.stem,
        plan_hash=plan_hash,
        sequences=len(keys),
        model=request.model,
        weights_sha256=request.weights_sha256,
        demo=request.demo,
        requested_layers=request.layers,
        pooling=request.pooling,
        pseudo_perplexity=request.pseudo_perplexity,
        compute_dtype=request.compute_dtype,
        dtype=request.output_dtype,
        device=request.device,
        versions={"virnucpro": __version__, "torch": request.torch},
        array_sha256=sha256_of(npy),
        extras={name: sha256_of(extra_path(npy, name)) for name in extras},
        shape=list(shape),
        layers=request.layers,
        backend=request.backend,
        tokens_per_step=request.tokens_per_step,
        quarantined=[
            Quarantined(
                row, keys[row].tobytes().hex(), Reason.NOT_IN_STORE, "the store has no such row"
            )
            for row in missing
        ],
        steps=0,
        retries=0,
        recomputed_float32=0,
        request=request,
        known=len(keys) - len(missing),
        close=np.flatnonzero(filled.close).tolist() if filled.close.any() else None,
    )


def _row_shape(known: Known) -> list[int]:
    if not known.segments:
        raise InputError(f"no store has rows of the request {known.request.id}")
    return known.segments[0].manifest.shape
