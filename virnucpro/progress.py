"""Shows how far long work has come: a bar on a terminal, a line now and then in a log file."""

from __future__ import annotations

import logging
import re
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from tqdm import tqdm

__all__ = ["Logged", "Progress", "read_progress"]

logger = logging.getLogger(__name__)

_BAR = (
    "{desc}{percentage:3.0f}%|{bar}| {n_fmt} of {total_fmt}{unit}, {rate_noinv_fmt}, "
    "{remaining} left"
)
_BAR_WITHOUT_END = "{desc}{n_fmt}{unit}, {rate_noinv_fmt}"
_LINE = re.compile(r" ([0-9.]+)% of ([0-9,]+) \S+, ([0-9,]+) \S+/s, [0-9]+ s left$")


@dataclass(frozen=True)
class Logged:
    """How far work was when it logged a line, in the unit of that line."""

    done: int  # to a thousandth of the total
    total: int
    per_second: float


def read_progress(line: str) -> Logged | None:
    """Read a line that `Progress` has logged, or return None for any other line."""
    found = _LINE.search(line)
    if found is None:
        return None
    total, per_second = (int(number.replace(",", "")) for number in found.group(2, 3))
    return Logged(round(total * float(found[1]) / 100), total, float(per_second))


class Progress:
    """Counts what is done and shows it, unless only warnings are logged.

    On a terminal there is a bar. Elsewhere a line is logged when `interval` seconds have passed
    since the last one, and a last line at the end: a log file has no control characters.

    Args:
        total: how much there is to do; None where that is not known: then there is no last line.
        unit: what is counted.
        what: what it is about, a sample or a shard: stands before the bar and in the lines.
        done: how much was done before; it does not count for the rate.
        interval: seconds between two lines.
        clock: returns seconds, which only increase.
    """

    def __init__(
        self,
        total: int | None,
        unit: str = "tokens",
        *,
        what: str = "",
        done: int = 0,
        interval: float = 30.0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.total, self.unit, self.what = total, unit, what
        self.interval, self.clock = interval, clock
        self.done = self._done_before = done
        self._begun = self._last_step = self._last_line = clock()
        self._finished = False
        self._bar = None
        if sys.stderr.isatty() and logger.isEnabledFor(logging.INFO):
            # 80 x 24 where the terminal does not tell: tqdm by itself would then show nothing.
            size = shutil.get_terminal_size()
            self._bar = tqdm(
                total=total,
                initial=done,
                unit=f" {unit}",
                unit_scale=True,
                desc=f"{what} " if what else "",
                bar_format=_BAR_WITHOUT_END if total is None else _BAR,
                file=sys.stderr,
                ncols=size.columns - 1,
                nrows=size.lines,
                leave=False,
            )

    def step(self, amount: int) -> float:
        """Count what was done; returns the seconds since the step before."""
        self.done += amount
        now = self.clock()
        seconds, self._last_step = now - self._last_step, now
        finished = not self._finished and self.total is not None and self.done >= self.total
        if self._bar is not None:
            self._bar.update(amount)
        elif not finished and now - self._last_line >= self.interval:
            self._last_line = now
            self._log(self._how_far(self._rate(now)))
        if finished:
            self._finished = True
            self.close()
            self._log(
                f"{self.done - self._done_before:,} {self.unit} in {now - self._begun:.1f} s, "
                f"{self._rate(now):,.0f} {self.unit}/s"
            )
        return seconds

    def close(self) -> None:
        """Remove the bar; for work that ends before its total."""
        if self._bar is not None:
            self._bar.close()

    def _log(self, line: str) -> None:
        logger.info("%s", f"{self.what} {line.lstrip()}" if self.what else line)

    def _how_far(self, rate: float) -> str:
        if self.total is None:
            return f"{self.done:,} {self.unit}, {rate:,.0f} {self.unit}/s"
        share, left = 100 * self.done / self.total, (self.total - self.done) / rate
        return (
            f"{share:5.1f}% of {self.total:,} {self.unit}, {rate:,.0f} {self.unit}/s, "
            f"{left:.0f} s left"
        )

    def _rate(self, now: float) -> float:
        return (self.done - self._done_before) / max(now - self._begun, 1e-9)
