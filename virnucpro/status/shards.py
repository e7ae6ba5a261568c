"""How far a shard is, by its receipt, its checkpoints, its plan and its log."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from virnucpro.embed.checkpoints import checkpoints_directory, tokens_in_checkpoints
from virnucpro.embed.receipt import ShardReceipt, read_receipt
from virnucpro.errors import VirnucproError
from virnucpro.plan.report import read_report
from virnucpro.sequences.manifest import ShardEntry
from virnucpro.status.logs import job_state, read_log

__all__ = ["STATES", "ShardFolders", "ShardStatus", "shard_status"]

STATES = ("done", "running", "silent", "failed", "to do")
"""What a shard can be; see `virnucpro.status.logs.job_state`."""


@dataclass(frozen=True)
class ShardFolders:
    """Where the files of a sample's shards are; None where there is no such folder yet."""

    plans: Path | None
    embeddings: Path | None
    logs: Path


@dataclass(frozen=True)
class ShardStatus:
    """How far a shard is."""

    name: str
    state: str  # one of `STATES`
    sequences: int  # distinct
    tokens: int  # of its plan; of all its residues where it is not planned yet
    tokens_done: int  # of these; those in checkpoints of an earlier job count
    tokens_per_second: float | None  # of a running one, as its log said last
    planned: bool
    finished: float | None  # when its receipt was written, seconds since the epoch
    steps: int  # of a finished one
    unknown: str | None  # what a damaged file keeps from telling


def shard_status(entry: ShardEntry, folders: ShardFolders, now: float) -> ShardStatus:
    """Say how far a shard is; a file that cannot be read makes it less known, and no error.

    Args:
        entry: the shard, as the manifest has it.
        folders: where its files are.
        now: seconds since the epoch.
    """
    tokens, plan_problem = _planned_tokens(entry, folders.plans)
    receipt, finished, receipt_problem = _receipt(entry.name, folders.embeddings)
    log = read_log(folders.logs / f"{entry.name}.log")
    state = "done" if receipt else job_state(log, now)
    done, rate = tokens or entry.tokens, None
    if receipt is None:
        done = _tokens_in_checkpoints(entry.name, folders.embeddings)
        if state == "running" and log and log.progress:
            done, rate = max(done, log.progress.done), log.progress.per_second
    return ShardStatus(
        name=entry.name,
        state=state,
        sequences=entry.sequences,
        tokens=tokens or entry.tokens,
        tokens_done=min(done, tokens or entry.tokens),
        tokens_per_second=rate,
        planned=tokens is not None,
        finished=finished,
        steps=receipt.steps if receipt else 0,
        unknown=plan_problem or receipt_problem,
    )


def _planned_tokens(entry: ShardEntry, plans: Path | None) -> tuple[int | None, str | None]:
    """Return the tokens of a shard's plan, or None and, for a damaged one, what is wrong."""
    if plans is None or not (path := plans / f"{entry.name}.json").exists():
        return None, None
    try:
        return read_report(path).packing.tokens, None
    except (VirnucproError, OSError) as error:
        return None, _problem(path, error)


def _receipt(
    name: str, embeddings: Path | None
) -> tuple[ShardReceipt | None, float | None, str | None]:
    """Return a shard's receipt and its time, or None and, for a damaged one, what is wrong."""
    if embeddings is None or not (path := embeddings / f"{name}.json").exists():
        return None, None, None
    try:
        receipt, finished = read_receipt(path), path.stat().st_mtime
    except (VirnucproError, OSError) as error:
        return None, None, _problem(path, error)
    if not (array := embeddings / f"{name}.npy").exists():
        return None, None, f"{array} is missing beside its receipt"
    return receipt, finished, None


def _tokens_in_checkpoints(name: str, embeddings: Path | None) -> int:
    return (
        tokens_in_checkpoints(checkpoints_directory(embeddings / f"{name}.npy"))
        if embeddings
        else 0
    )


def _problem(path: Path, error: Exception) -> str:
    """Return one sentence on a file that cannot be read."""
    text = error.message if isinstance(error, VirnucproError) else str(error)
    return f"{path}: {text}"
