"""Work on a stream of items in several processes, whose results come in the order of the items."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from typing import TypeVar

__all__ = ["in_order"]

T = TypeVar("T")
R = TypeVar("R")

_AHEAD = 4  # batches for each process that wait, or are done and wait for an earlier one


def in_order(
    work: Callable[[list[T]], list[R]], batches: Iterable[list[T]], processes: int
) -> Iterator[tuple[T, R]]:
    """Yield each item with its result, in the order of the items, whatever the number of processes.

    Args:
        work: a function of a module; returns a result for each item of a batch.
        batches: the items; no more of them are read than the processes need.
        processes: 1 works in this process.

    Raises:
        BrokenProcessPool: a process was killed.
    """
    if processes == 1:
        for batch in batches:
            yield from zip(batch, work(batch), strict=True)
        return
    context = multiprocessing.get_context("spawn")  # a fork would copy threads' locks
    with ProcessPoolExecutor(processes, context, initializer=_begin) as pool:
        pending: deque[tuple[list[T], Future[list[R]]]] = deque()
        try:
            for batch in batches:
                pending.append((batch, pool.submit(work, batch)))
                if len(pending) >= _AHEAD * processes:
                    yield from _first(pending)
            while pending:
                yield from _first(pending)
        finally:
            for _, future in pending:
                future.cancel()


def _first(pending: deque[tuple[list[T], Future[list[R]]]]) -> Iterator[tuple[T, R]]:
    batch, future = pending.popleft()
    yield from zip(batch, future.result(), strict=True)


def _begin() -> None:
    """Leave Ctrl-C to the parent, and end with it, even if it was killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
