"""Says in the log how far a shard is, now and then."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

__all__ = ["Progress"]

logger = logging.getLogger(__name__)


class Progress:
    """Counts tokens, and logs a line when `interval` seconds have passed since the last one.

    Args:
        total: tokens of the whole shard.
        interval: seconds between two lines.
        clock: gives seconds, rising.
    """

    def __init__(
        self, total: int, interval: float = 30.0, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.total, self.interval, self.clock = total, interval, clock
        self.done = 0
        self._begun = self._last_step = self._last_line = clock()

    def step(self, tokens: int) -> float:
        """Count a step's tokens; returns the seconds since the step before."""
        self.done += tokens
        now = self.clock()
        seconds, self._last_step = now - self._last_step, now
        if now - self._last_line >= self.interval:
            self._last_line = now
            rate = self.done / (now - self._begun)
            logger.info(
                "%5.1f%% of %d tokens, %.0f tokens/s, %.0f s left",
                100 * self.done / self.total,
                self.total,
                rate,
                (self.total - self.done) / rate,
            )
        return seconds
