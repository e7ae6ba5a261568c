"""Lets the k-th system call of `virnucpro.files` fail, or ends everything there as a kill would."""

import os
import threading

from virnucpro import files, temporary

CALLS = ("mkdir", "open", "fsync", "replace", "rename", "unlink", "posix_fallocate")


class Killed(BaseException):
    """The process is dead: raised from the call on which it died, and from all later ones."""


class Injector:
    """Stands in for `os` in `virnucpro.files`.

    Args:
        at: the number of the call that fails, from 0; None for none.
        error: an errno, None for a kill, or the exception of a signal.
    """

    def __init__(self, at=None, error=None):
        self.at, self.error = at, error
        self.calls = 0
        self.dead = False

    def __getattr__(self, name):
        real = getattr(os, name)
        if name not in CALLS:
            return real

        def call(*arguments, **options):
            number, self.calls = self.calls, self.calls + 1
            if isinstance(self.error, BaseException):  # signals reach the main thread only
                if number == self.at and threading.current_thread() is threading.main_thread():
                    raise self.error
                return real(*arguments, **options)
            if number == self.at and self.error is not None:
                named = () if isinstance(arguments[0], int) else (str(arguments[0]),)
                raise OSError(self.error, os.strerror(self.error), *named)
            self.dead = self.dead or number == self.at
            if self.dead:  # not even what tidies up runs
                raise Killed
            return real(*arguments, **options)

        return call


def new_process():
    """Let `virnucpro.files` forget what this process wrote and saw, as a new one would not know."""
    files._sweep.cache_clear()
    temporary.in_use.clear()
