"""The package's exceptions: what went wrong, where, and what to do next."""

from __future__ import annotations

__all__ = ["DataError", "InputError", "VirnucproError"]


class VirnucproError(Exception):
    """Base of every error that a user can meet; its text has place, cause and hint.

    Attributes:
        exit_code: the status the command line ends with.
    """

    exit_code = 1

    def __init__(
        self,
        message: str,
        *,
        path: object = None,
        line: int | None = None,
        hint: str | None = None,
    ) -> None:
        self.message = message
        self.path = path
        self.line = line
        self.hint = hint
        place = "" if path is None else f"{path}: " if line is None else f"{path}, line {line}: "
        super().__init__(f"{place}{message}" + (f"\n  hint: {hint}" if hint else ""))


class InputError(VirnucproError):
    """What the user provided (a file, an option, a combination) cannot be used."""

    exit_code = 2


class DataError(VirnucproError):
    """A file that an earlier step wrote is missing, damaged or does not belong here."""
