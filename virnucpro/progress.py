"""Says how far a long piece of work is: a bar on a terminal, a line now and then in a log file."""

from __future__ import annotations

import logging
import shutil
import sys
import time
from collections.abc import Callable

from tqdm import tqdm

__all__ = ["Progress"]

logger = logging.getLogger(__name__)

_BAR = (
    "{desc}{percentage:3.0f}%|{bar}| {n_fmt} of {total_fmt}{unit}, {rate_noinv_fmt}, "
    "{remaining} left"
)


class Progress:
    """Counts what is done and shows it, unless the log is of warnings only.

    On a terminal there is a bar. Elsewhere a line is logged when `interval` seconds have passed
    since the last one, and a last line at the end: a log file has no control characters.

    Args:
        total: how much there is to do.
        unit: what is counted.
        what: what the bar is about.
        done: how much was done before; it does not count for the rate.
        interval: seconds between two lines.
        clock: gives seconds, rising.
    """

    def __init__(
        self,
        total: int,
        unit: str = "tokens",
        *,
        what: str = "",
        done: int = 0,
        interval: float = 30.0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.total, self.unit, self.interval, self.clock = total, unit, interval, clock
        self.done = self._done_before = done
        self._begun = self._last_step = self._last_line = clock()
        self._bar = None
        if sys.stderr.isatty() and logger.isEnabledFor(logging.INFO):
            # 80 x 24 where the terminal does not tell: tqdm by itself would then show nothing.
            size = shutil.get_terminal_size()
            self._bar = tqdm(
                total=total,
                initial=done,
                unit=f" {unit}",
                unit_scale=True,
                desc=what,
                bar_format=_BAR,
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
        finished = self.done >= self.total
        if self._bar is not None:
            self._bar.update(amount)
            if finished:
                self._bar.close()
        elif not finished and now - self._last_line >= self.interval:
            self._last_line = now
            rate = self._rate(now)
            logger.info(
                *("%5.1f%% of %s %s, %s %s/s, %.0f s left", 100 * self.done / self.total),
                *(f"{self.total:,}", self.unit, f"{rate:,.0f}", self.unit),
                (self.total - self.done) / rate,
            )
        if finished:
            logger.info(
                *("%s %s in %.1f s, %s %s/s", f"{self.done - self._done_before:,}", self.unit),
                *(now - self._begun, f"{self._rate(now):,.0f}", self.unit),
            )
        return seconds

    def close(self) -> None:
        """Take the bar away; for work that ends before its total."""
        if self._bar is not None:
            self._bar.close()

    def _rate(self, now: float) -> float:
        return (self.done - self._done_before) / max(now - self._begun, 1e-9)
