"""How far a sample is: which step it is at, and its shards."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from virnucpro.errors import VirnucproError
from virnucpro.sequences.manifest import Manifest, read_manifest
from virnucpro.status.logs import job_state, read_log
from virnucpro.status.shards import STATES, ShardFolders, ShardStatus, shard_status

__all__ = ["SampleStatus", "newest", "sample_status"]

_BEFORE_SHARDS = ("split", "genes")  # the last of them first


@dataclass(frozen=True)
class SampleStatus:
    """How far a sample is."""

    name: str
    step: str  # genes, split, embed, merge, or done: what it is at
    state: str  # of that step, one of `virnucpro.status.shards.STATES`
    shards: dict[str, int]  # number of shards by state; none before the split
    sequences: int | None  # distinct; None before the split
    sequences_done: int  # of shards that are done
    tokens: int | None  # that are planned; None before the split
    tokens_done: int  # also of shards under way, as far as it is known
    unknown: list[str]  # what cannot be told, a sentence each


def sample_status(workdir: Path, name: str, now: float) -> tuple[SampleStatus, list[ShardStatus]]:
    """Say how far a sample is.

    Args:
        workdir: the working directory.
        name: the sample.
        now: seconds since the epoch.

    Returns:
        The sample, and its shards in order; none where its split is not there or damaged.
    """
    results = workdir / "results" / name
    unknown = [
        f"results/{name}/{kind} has {len(found)} folders, of as many inputs or configurations: the "
        "newest is meant"
        for kind in ("split", "plan", "embeddings")
        if len(found := _folders(results / kind)) > 1
    ]
    manifest = _read_split(results, unknown)
    if manifest is None:
        step, state = _before_shards(workdir, name, now)
        return SampleStatus(name, step, state, {}, None, 0, None, 0, unknown), []
    folders = ShardFolders(
        plans=newest(results / "plan"),
        embeddings=newest(results / "embeddings"),
        logs=workdir / "logs" / "embed" / name,
    )
    shards = [shard_status(entry, folders, now) for entry in manifest.shards]
    step, state = _step_of(workdir, name, shards, now)
    return _summed(name, step, state, shards, unknown), shards


def newest(folder: Path) -> Path | None:
    """Return the entry of a folder that was changed last, by name where two were at once.

    Folders are named after what their content was made of. Which of them the present configuration
    asks for is known to the workflow alone, but a run writes into it.
    """
    found = _folders(folder)
    return found[-1] if found else None


def _folders(folder: Path) -> list[Path]:
    """Return the entries of a folder that are not hidden, the last one changed at the end."""
    try:
        changed = [
            (path.stat().st_mtime_ns, path)
            for path in folder.iterdir()
            if not path.name.startswith(".")
        ]
    except OSError:  # none, or removed meanwhile
        return []
    return [path for _, path in sorted(changed)]


def _read_split(results: Path, unknown: list[str]) -> Manifest | None:
    """Read the newest manifest that there is; None before the split."""
    for split in reversed(_folders(results / "split")):
        if (shards := split / "shards").joinpath("manifest.json").exists():
            try:
                return read_manifest(shards)
            except (VirnucproError, OSError) as error:
                text = error.message if isinstance(error, VirnucproError) else str(error)
                unknown.append(f"{shards / 'manifest.json'}: {text}")
                return None
    return None


def _before_shards(workdir: Path, name: str, now: float) -> tuple[str, str]:
    """Return the step that a sample without a split is at, and the state of that step."""
    for step in _BEFORE_SHARDS:
        logs = map(read_log, (workdir / "logs" / step / name).rglob("*.log"))
        states = [job_state(log, now) for log in logs]
        begun = [state for state in ("running", "failed", "silent") if state in states]
        if begun:
            return step, begun[0]
    return "split", "to do"


def _step_of(workdir: Path, name: str, shards: list[ShardStatus], now: float) -> tuple[str, str]:
    """Return the step that a sample with a split is at, and the state of that step."""
    states = {shard.state for shard in shards} - {"done"}
    if states:
        return "embed", next(state for state in ("running", "failed", *STATES) if state in states)
    if _is_merged(workdir / "results" / name, shards):
        return "done", "done"
    return "merge", job_state(read_log(workdir / "logs" / "merge" / f"{name}.log"), now)


def _is_merged(results: Path, shards: list[ShardStatus]) -> bool:
    """Whether the results with fixed names were made after the last of the shards."""
    try:
        merged = (results / "embeddings.h5ad").stat().st_mtime
    except OSError:
        return False
    return merged >= max((shard.finished or 0.0 for shard in shards), default=0.0)


def _summed(
    name: str, step: str, state: str, shards: list[ShardStatus], unknown: list[str]
) -> SampleStatus:
    """Add up the shards of a sample."""
    counts = Counter(shard.state for shard in shards)
    unplanned = sum(not shard.planned for shard in shards)
    unknown = [*unknown, *(shard.unknown for shard in shards if shard.unknown)]
    if unplanned:
        unknown.append(
            f"{unplanned} of {len(shards)} shards of {name} have no readable plan: all their "
            "residues count"
        )
    if counts["silent"]:
        unknown.append(
            f"{counts['silent']} job(s) of {name} said nothing for long since they began: killed, "
            "hanging or waiting"
        )
    return SampleStatus(
        name=name,
        step=step,
        state=state,
        shards={each: counts[each] for each in STATES},
        sequences=sum(shard.sequences for shard in shards),
        sequences_done=sum(shard.sequences for shard in shards if shard.state == "done"),
        tokens=sum(shard.tokens for shard in shards),
        tokens_done=sum(shard.tokens_done for shard in shards),
        unknown=unknown,
    )
