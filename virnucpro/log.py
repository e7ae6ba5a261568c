"""Logging, set up in one place: the command line calls `configure`, modules only get loggers.

Everything goes to standard error. On a terminal, lines are written above a progress bar; elsewhere
each step ends with one line of JSON for machines (see `step`).
"""

from __future__ import annotations

import dataclasses
import json
import logging
import resource
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

from virnucpro import __version__
from virnucpro.errors import VirnucproError

__all__ = ["configure", "step"]

logger = logging.getLogger(__name__)


def configure(verbosity: int = 0) -> None:
    """Send the package's log to standard error.

    Args:
        verbosity: -1 for warnings only, 0 for information, 1 for debugging.
    """
    level = {-1: logging.WARNING, 0: logging.INFO}.get(verbosity, logging.DEBUG)
    handler = _Handler(sys.stderr)
    handler.setFormatter(
        _Formatter("%(asctime)s %(levelname)-7s %(message)s", datefmt="%Y-%m-%d %H:%M:%S")
    )
    package = logging.getLogger("virnucpro")
    package.handlers[:] = [handler]
    package.setLevel(level)
    package.propagate = False


class _Handler(logging.StreamHandler):  # type: ignore[type-arg]
    """Hides the progress bar while a line is written."""

    def emit(self, record: logging.LogRecord) -> None:
        with tqdm.external_write_mode(file=self.stream):
            super().emit(record)


class _Formatter(logging.Formatter):
    """Puts time and level before a line, except where it is for machines."""

    def format(self, record: logging.LogRecord) -> str:
        if getattr(record, "for_machines", False):
            return record.getMessage()
        return super().format(record)


@contextmanager
def step(name: str) -> Iterator[dict[str, Any]]:
    """Time a step; if the log is not a terminal, end it with a line of JSON, whatever happened.

    The line has ``step``, ``status`` (``done``, ``failed``, or ``interrupted`` by a signal),
    ``seconds``, ``peak_memory_bytes`` (resident memory of the process), ``version`` and ``result``,
    or in place of the last ``error`` and ``exit_status``: 2 for bad input or configuration, which
    fails again if it is repeated.

    Args:
        name: of the step, as on the command line.

    Yields:
        A dict to put the results into.
    """
    begun = time.perf_counter()
    result: dict[str, Any] = {}
    try:
        yield result
    except BaseException as error:
        if isinstance(error, SystemExit) and error.code in (None, 0):
            _say(name, "done", begun, result=result)
        else:
            status, what = _describe(error)
            _say(name, status, begun, error=what, exit_status=_exit_status(error))
        raise
    _say(name, "done", begun, result=result)


def _describe(error: BaseException) -> tuple[str, str]:
    """Return the status and the ``error`` of a step that ended by an exception."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", signal.SIGINT.name
    if isinstance(error, SystemExit):
        if error.code in (128 + signal.SIGINT, 128 + signal.SIGTERM):
            return "interrupted", signal.Signals(int(error.code) - 128).name
        return "failed", error.code if isinstance(error.code, str) else f"exit status {error.code}"
    text = str(error).partition("\n  hint: ")[0]
    if isinstance(error, VirnucproError | OSError) and text:
        return "failed", text
    kind = type(error).__name__
    return "failed", f"{kind}: {text}" if text else kind


def _exit_status(error: BaseException) -> int:
    """Return the exit status of a command that ends by an exception."""
    if isinstance(error, KeyboardInterrupt):
        return 128 + signal.SIGINT
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1
    return error.exit_code if isinstance(error, VirnucproError) else 1


def _say(name: str, status: str, begun: float, **rest: Any) -> None:
    if sys.stderr.isatty():
        return
    line = {
        "step": name,
        "status": status,
        "seconds": round(time.perf_counter() - begun, 3),
        "peak_memory_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "version": __version__,
        **rest,
    }
    text = json.dumps(line, ensure_ascii=False, default=_as_json)
    logger.info(text, extra={"for_machines": True})


def _as_json(value: Any) -> Any:
    is_instance = dataclasses.is_dataclass(value) and not isinstance(value, type)
    return dataclasses.asdict(value) if is_instance else str(value)
