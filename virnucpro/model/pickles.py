"""PyTorch's pickled files, opened without running anything that they say."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from virnucpro.errors import InputError

__all__ = ["load_tensors_only"]

_ZIP_MAGIC = b"PK\x03\x04"


def load_tensors_only(path: Path, allowed: Sequence[type] = ()) -> Any:
    """Open a file of ``torch.save``: tensors, numbers, strings, containers and nothing else.

    Args:
        path: the file. It is mapped into memory where its format allows.
        allowed: harmless classes that the file may name besides.

    Returns:
        What was saved, tensors on the CPU.

    Raises:
        InputError: the file is damaged, or names a function or class outside the list. Nothing of
            it was executed.
    """
    with path.open("rb") as handle:
        mapped = handle.read(len(_ZIP_MAGIC)) == _ZIP_MAGIC
    try:
        with torch.serialization.safe_globals(list(allowed)):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:
        # A damaged pickle can end in any exception: it is a program whose text is arbitrary.
        if refused := re.search(r"GLOBAL (\S+) (?:was not an allowed|whose module)", str(error)):
            raise InputError(
                f"refused: it asks for {refused[1]}, which a file of weights has no use for; "
                "nothing of it was run",
                path=path,
                hint="get the file from its publisher again; do not open it with other programs",
            ) from error
        raise InputError(
            f"is not a whole file of PyTorch ({_reason(error)})",
            path=path,
            hint="copy or download it again",
        ) from error


def _reason(error: Exception) -> str:
    """Give one line of an error; ``torch.load``'s first ones advise to load it without care."""
    inner = re.search(r"WeightsUnpickler error: (.+)", str(error))
    return inner[1] if inner else (str(error) or type(error).__name__).splitlines()[0]
