"""The shards of a sample: the manifest, and the proof that all of them belong together."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from virnucpro.errors import DataError
from virnucpro.files import read_json, sha256_meanwhile, sha256_of
from virnucpro.formats import SPLIT_FORMAT, check_format
from virnucpro.merge.receipts import ShardEmbeddings, check_complete, verify_shard
from virnucpro.merge.records import Places, RecordKeys, place_shard, read_keys
from virnucpro.plan.plan import Plan, read_plan
from virnucpro.progress import Progress

__all__ = ["Shards", "check_written_by_split", "read_manifest", "shard_names", "verify_shards"]

_SPLIT_AGAIN = "remove the sample's shards and records and run split again"


@dataclass(frozen=True)
class Shards:
    """All shards of a sample, verified.

    Attributes:
        names: in the manifest's order.
        receipts: one a shard.
        quarantined: one a shard, row -> (reason, detail).
        places: where each record is.
        plan: the plans' common parameters, and a hash over their content hashes.
        residues: how many residues all sequences with an embedding have; None where they were not
            kept.
    """

    names: list[str]
    receipts: list[dict[str, Any]]
    quarantined: list[dict[int, tuple[str, str]]]
    places: Places
    plan: dict[str, Any]
    residues: int | None = None


def read_manifest(shards_dir: Path) -> dict[str, Any]:
    """Read the manifest that `split` wrote beside its shards.

    Raises:
        DataError: it is missing or is not JSON.
        InputError: another version of the program wrote it.
    """
    path = shards_dir / "manifest.json"
    manifest = read_json(path)
    check_format("split manifest", manifest.get("format"), SPLIT_FORMAT, path=path)
    return manifest


def shard_names(manifest: dict[str, Any]) -> list[str]:
    """Give the names of a manifest's shards, by shard number."""
    return [str(shard["name"]) for shard in manifest["shards"]]


def verify_shards(
    manifest: dict[str, Any], *, records: Path, plans_dir: Path, embeddings_dir: Path
) -> Shards:
    """Verify every shard, one at a time, and find every record's row in them.

    Args:
        manifest: of `split`.
        records: records.parquet.
        plans_dir: must hold exactly the manifest's plans.
        embeddings_dir: must hold exactly the manifest's arrays and receipts.

    Raises:
        DataError: something is missing, too much, damaged, or of another run.
        InputError: a file has another format number.
    """
    names = shard_names(manifest)
    check_complete(names, embeddings_dir, (".npy", ".json"))
    check_complete(names, plans_dir, (".parquet",))
    keys = _accepted(manifest, records, len(names))
    shards = Shards(names, [], [], Places.empty(keys.shards), {})
    residues: int | None = 0
    digest = hashlib.sha256()
    progress = Progress(len(names), "shards", what=f"{manifest['sample']}: checking")
    with contextlib.closing(progress):
        hashes = _hashed_ahead([embeddings_dir / f"{name}.npy" for name in names])
        for number, (name, facts) in enumerate(zip(names, manifest["shards"], strict=True)):
            plan, shard = _verify(name, facts, plans_dir, embeddings_dir, next(hashes))
            if "residues" not in shard.extras:
                residues = None
            residues = place_shard(
                *(name, plan, shard.quarantined, keys, keys.of_shard(number), shards.places),
                first_residue=residues,
            )
            shards.receipts.append(shard.receipt)
            shards.quarantined.append(shard.quarantined)
            parameters = shards.plan or plan.parameters
            if parameters != plan.parameters:
                raise DataError(
                    f"plans differ in their parameters: {names[0]} has {parameters}, {name} has "
                    f"{plan.parameters}",
                    hint="remove the sample's plans and run again",
                )
            shards.plan.update(plan.parameters)
            digest.update(plan.content_hash.encode())
            progress.step(1)
    shards.plan["hash"] = digest.hexdigest()
    return replace(shards, residues=residues)


def check_written_by_split(path: Path, sha256: object) -> None:
    """Check that a file is the one that the manifest knows.

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


def _accepted(manifest: dict[str, Any], records: Path, shards: int) -> RecordKeys:
    check_written_by_split(records, manifest.get("records_sha256"))
    keys = read_keys(records, shards=shards)
    accepted = manifest["records"]["accepted"]
    if len(keys.keys) != accepted:
        raise DataError(
            f"has {len(keys.keys)} records, the manifest {accepted}",
            path=records,
            hint=_SPLIT_AGAIN,
        )
    return keys


def _hashed_ahead(paths: Sequence[Path]) -> Iterator[Future[str]]:
    """Give each file's hash, while the next file is read and hashed already."""
    ahead = (sha256_meanwhile(path) for path in paths)
    current = next(ahead, None)
    while current is not None:
        following = next(ahead, None)
        yield current
        current = following


def _verify(
    name: str,
    facts: dict[str, Any],
    plans_dir: Path,
    embeddings_dir: Path,
    sha256: Future[str],
) -> tuple[Plan, ShardEmbeddings]:
    path = plans_dir / f"{name}.parquet"
    plan = read_plan(path)
    array, receipt = embeddings_dir / f"{name}.npy", embeddings_dir / f"{name}.json"
    shard = verify_shard(array, receipt, plan, sha256)
    if facts["sequences"] != shard.receipt["sequences"]:
        raise DataError(
            f"shard {name}: the manifest has {facts['sequences']} sequences, its plan and "
            f"embeddings {shard.receipt['sequences']}",
            path=path,
            hint="remove the shard's plan and embeddings and run again",
        )
    return plan, shard
