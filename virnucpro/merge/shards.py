"""The shards of a sample, verified to belong together."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

from virnucpro.embed.receipt import Quarantined, ShardReceipt
from virnucpro.errors import DataError
from virnucpro.files import sha256_in_background, sha256_of
from virnucpro.merge.arrays import verify_shard
from virnucpro.merge.records import RecordKeys, read_keys
from virnucpro.merge.row_index import RowIndex, index_shard
from virnucpro.plan.parameters import PlanParameters
from virnucpro.plan.plan import Plan, read_plan
from virnucpro.progress import Progress
from virnucpro.sequences.manifest import Manifest, ShardEntry

__all__ = ["Shards", "check_complete", "check_written_by_split", "verify_shards"]

_SPLIT_AGAIN = "remove the sample's shards and records and run split again"


@dataclass(frozen=True)
class Shards:
    """All shards of a sample, verified; the lists have one entry per shard."""

    names: list[str]
    plans_dir: Path
    embeddings_dir: Path
    receipts: list[ShardReceipt]
    quarantined: list[dict[int, Quarantined]]  # by row
    index: RowIndex
    parameters: PlanParameters  # of all plans
    plans_hash: str  # SHA-256 over the plans' content hashes
    residues: int | None  # of all sequences with an embedding; None where they were not kept

    @property
    def arrays(self) -> list[Path]:
        """The files of the embeddings."""
        return [self.embeddings_dir / f"{name}.npy" for name in self.names]


def verify_shards(
    manifest: Manifest, *, records: Path, plans_dir: Path, embeddings_dir: Path
) -> Shards:
    """Verify every shard, one at a time, and find every record's row in them.

    Args:
        manifest: of `split`.
        records: records.parquet.
        plans_dir: must hold the manifest's plans.
        embeddings_dir: must hold the manifest's arrays and receipts.

    Raises:
        DataError: something is missing, damaged, or of another run.
        InputError: a file has another format number.
    """
    names = manifest.names
    check_complete(names, embeddings_dir, (".npy", ".json"))
    check_complete(names, plans_dir, (".parquet",))
    keys = _accepted(manifest, records)
    index = RowIndex.empty(keys.shards)
    receipts, quarantined, parameters = [], [], []
    residues: int | None = 0
    digest = hashlib.sha256()
    progress = Progress(len(names), "shards", what=f"{manifest.sample}: checking")
    with contextlib.closing(progress):
        hashes = _hashed_ahead([embeddings_dir / f"{name}.npy" for name in names])
        for number, entry in enumerate(manifest.shards):
            plan, receipt = _verify(entry, plans_dir, embeddings_dir, next(hashes))
            receipts.append(receipt)
            quarantined.append(receipt.quarantined_by_row())
            if "residues" not in receipt.extras:
                residues = None
            residues = index_shard(
                *(entry.name, plan, quarantined[-1], keys, keys.of_shard(number), index),
                first_residue=residues,
                close=receipt.close or (),
            )
            parameters.append(plan.parameters)
            digest.update(plan.content_hash.encode())
            progress.step(1)
    _check_parameters(names, parameters)
    return Shards(
        *(names, plans_dir, embeddings_dir, receipts, quarantined, index),
        *(parameters[0], digest.hexdigest(), residues),
    )


def _check_parameters(names: Sequence[str], parameters: Sequence[PlanParameters]) -> None:
    for name, found in zip(names, parameters, strict=True):
        if found != parameters[0]:
            raise DataError(
                f"plans differ in their parameters: {names[0]} has {parameters[0]}, {name} has "
                f"{found}",
                hint="remove the sample's plans and run again",
            )


def check_complete(names: Sequence[str], directory: Path, suffixes: Sequence[str]) -> None:
    """Check that a folder holds one file of each suffix for every shard.

    Other files may lie beside them: shards have names that are of their content, and those of
    earlier inputs stay until they are pruned.

    Args:
        names: the shards of the manifest.
        directory: the folder to look into.
        suffixes: for instance ``(".npy", ".json")``.

    Raises:
        DataError: files are missing; the message lists them.
    """
    expected = {f"{name}{suffix}" for name in names for suffix in suffixes}
    found = {path.name for path in directory.iterdir()} if directory.is_dir() else set()
    if missing := sorted(expected - found):
        more = ", ..." if len(missing) > 10 else ""
        raise DataError(
            f"does not hold the manifest's {len(names)} shards; {len(missing)} missing: "
            f"{', '.join(missing[:10])}{more}",
            path=directory,
            hint="run the missing shards again",
        )


def check_written_by_split(path: Path, sha256: str) -> None:
    """Check that a file has the hash that the manifest states.

    Raises:
        DataError: it is missing, or has another hash; both are named.
    """
    if not path.exists():
        raise DataError("is missing", path=path, hint=_SPLIT_AGAIN)
    found = sha256_of(path)
    if found != sha256:
        raise DataError(
            f"is not what `split` wrote: sha256 {found}, the manifest has {sha256}",
            path=path,
            hint=_SPLIT_AGAIN,
        )


def _accepted(manifest: Manifest, records: Path) -> RecordKeys:
    check_written_by_split(records, manifest.records_sha256)
    keys = read_keys(records, shards=len(manifest.shards))
    if len(keys.keys) != manifest.records.accepted:
        raise DataError(
            f"has {len(keys.keys)} records, the manifest {manifest.records.accepted}",
            path=records,
            hint=_SPLIT_AGAIN,
        )
    return keys


def _hashed_ahead(paths: Sequence[Path]) -> Iterator[Future[str]]:
    """Yield each file's hash while the next file is already being hashed."""
    ahead = (sha256_in_background(path) for path in paths)
    current = next(ahead, None)
    while current is not None:
        following = next(ahead, None)
        yield current
        current = following


def _verify(
    entry: ShardEntry, plans_dir: Path, embeddings_dir: Path, sha256: Future[str]
) -> tuple[Plan, ShardReceipt]:
    path = plans_dir / f"{entry.name}.parquet"
    plan = read_plan(path)
    npy, json = (embeddings_dir / f"{entry.name}{suffix}" for suffix in (".npy", ".json"))
    receipt = verify_shard(npy, json, plan, sha256)
    if entry.sequences != receipt.sequences:
        raise DataError(
            f"shard {entry.name}: the manifest has {entry.sequences} sequences, its plan and "
            f"embeddings {receipt.sequences}",
            path=path,
            hint="remove the shard's plan and embeddings and run again",
        )
    return plan, receipt
