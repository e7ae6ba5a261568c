"""The last error of a run, and the log that has it."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from virnucpro.status.logs import JobLog, read_log

__all__ = ["LastError", "last_error"]

# Rules whose jobs are one a shard: what failed is past once the shard has its results.
_OF_SHARDS = frozenset({"plan", "embed"})


@dataclass(frozen=True)
class LastError:
    """A job that failed, and was not done since."""

    error: str
    log: str  # its file, from the working directory
    seconds_ago: float  # since the log was last written to


def last_error(
    workdir: Path, open_shards: dict[str, set[str]], finished: Collection[str], now: float
) -> LastError | None:
    """Find the job that failed last and whose work was not done since.

    Args:
        workdir: the working directory, which has ``logs/``.
        open_shards: names of the shards that are not done, by sample.
        finished: samples of which nothing is left to do.
        now: seconds since the epoch.
    """
    logs = list(_logs(workdir / "logs"))
    failed = [
        (log.written, parts, log)
        for parts, log in logs
        if log.status == "failed" and not _is_past(parts, log, logs, open_shards, finished)
    ]
    if not failed:
        return None
    written, _, log = max(failed, key=lambda entry: entry[:2])
    path = log.path.relative_to(workdir)
    return LastError(log.error or "unknown", str(path), max(round(now - written, 1), 0.0))


def _logs(folder: Path) -> Iterator[tuple[tuple[str, ...], JobLog]]:
    """Yield every log with the parts of its name: the rule, the sample and what else there is."""
    for path in sorted(folder.rglob("*.log")):
        if (log := read_log(path)) is not None:
            yield path.relative_to(folder).with_suffix("").parts, log


def _is_past(
    parts: tuple[str, ...],
    log: JobLog,
    logs: list[tuple[tuple[str, ...], JobLog]],
    open_shards: dict[str, set[str]],
    finished: Collection[str],
) -> bool:
    """Whether what failed was done since, or is of shards or samples that are no more."""
    rule, *rest = parts
    if rule in _OF_SHARDS and len(rest) == 2:
        sample, shard = rest
        return shard not in open_shards.get(sample, set())
    if rest and rest[0] in finished:
        return True
    return any(
        other[:2] == parts[:2] and later.status == "done" and later.written > log.written
        for other, later in logs
    )
