"""Says how far a run is, a line now and then, for as long as it goes on."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from virnucpro.errors import VirnucproError
from virnucpro.status.run import run_status
from virnucpro.status.text import progress_line

__all__ = ["watch"]

_SHARE = 0.05  # of the time that reading the status may take
_LOOK_SECONDS = 0.5  # between two looks whether the run is over


def watch(
    workdir: Path,
    is_running: Callable[[], bool],
    say: Callable[[str], object],
    *,
    interval: float = 30.0,
) -> None:
    """Say how far a run is whenever that has changed, until it is over.

    Args:
        workdir: the working directory of the run.
        is_running: whether the run goes on.
        say: takes a line.
        interval: seconds between two lines at least; more where reading the status takes long.
    """
    said, pause = "", interval
    while _goes_on_for(pause, is_running):
        begun = time.monotonic()
        try:
            line = progress_line(run_status(workdir))
        except (VirnucproError, OSError):  # nothing is there yet, or it was taken away
            continue
        pause = max(interval, (time.monotonic() - begun) / _SHARE)
        if line != said and is_running():
            say(line)
            said = line


def _goes_on_for(seconds: float, is_running: Callable[[], bool]) -> bool:
    """Wait; returns False at once when the run is over."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        if not is_running():
            return False
        time.sleep(min(left, _LOOK_SECONDS))
    return is_running()
