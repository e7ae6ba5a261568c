"""How the log of a job ends: with a line for machines, with an error, or not yet."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from virnucpro.progress import Logged, read_progress

__all__ = ["SILENT_SECONDS", "JobLog", "job_state", "read_log"]

SILENT_SECONDS = 900.0
"""A log that says nothing for so long is of a job that waits, hangs or was killed.

A job that computes says something every 30 s, one that waits for a GPU every 10 minutes.
"""

_TAIL = 1 << 16  # bytes of a log that are read
_BEFORE_STEP = ("Usage: virnucpro", "error: ")  # how the log of a command begins that never began


@dataclass(frozen=True)
class JobLog:
    """What the end of a job's log tells."""

    path: Path
    written: float  # when it was last written to, seconds since the epoch
    status: str  # done, failed, interrupted; open where the log has no end yet
    error: str | None  # what went wrong, where it failed
    progress: Logged | None  # the last line on how far it is


def read_log(path: Path) -> JobLog | None:
    """Read the end of a log; None where there is none, or it cannot be read."""
    try:
        written = path.stat().st_mtime
        with path.open("rb") as handle:
            handle.seek(max(path.stat().st_size - _TAIL, 0))
            text = handle.read().decode(errors="replace")
    except OSError:
        return None
    lines = text.splitlines()
    progress = next(filter(None, map(read_progress, reversed(lines))), None)
    status, error = _ending(lines)
    return JobLog(path, written, status, error, progress)


def job_state(log: JobLog | None, now: float) -> str:
    """Say what has become of a job whose results are not there, by its log.

    Args:
        log: its log, or None where there is none.
        now: seconds since the epoch.

    Returns:
        ``running``, ``silent`` (begun, and no sign of it for `SILENT_SECONDS`), ``failed``, or
        ``to do``, also for one that was interrupted, and where the log is of another configuration.
    """
    if log is None or log.status in ("done", "interrupted"):
        return "to do"
    if log.status == "failed":
        return "failed"
    return "running" if now - log.written <= SILENT_SECONDS else "silent"


def _ending(lines: list[str]) -> tuple[str, str | None]:
    """Return the status and the error that the last lines of a log tell."""
    for line in reversed(lines):
        if (end := _machine_line(line)) is not None:
            status = str(end.get("status"))
            return status, str(end.get("error")) if status == "failed" else None
    if lines and lines[0].startswith(_BEFORE_STEP):
        errors = [line for line in lines if line.lower().startswith("error: ")]
        return "failed", (errors or lines)[0].partition(": ")[2]
    if any(line.startswith("Traceback (most recent call last)") for line in lines):
        return "failed", lines[-1]
    return "open", None


def _machine_line(line: str) -> dict[str, Any] | None:
    """Read the line of JSON that a step ends with, or return None for any other line."""
    if not line.startswith('{"step"'):
        return None
    try:
        value = json.loads(line)
    except ValueError:  # it is being written
        return None
    return value if isinstance(value, dict) else None
