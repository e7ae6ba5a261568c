"""PyTorch's pickled files, opened without running anything that they say."""

from __future__ import annotations

import re
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from virnucpro.errors import InputError
from virnucpro.model.foreign import refuse_foreign

__all__ = ["load_tensors_only"]

_ZIP_MAGIC = b"PK\x03\x04"
# The first value in a file of torch.save before it wrote zip archives.
_LEGACY_MAGIC = torch.serialization.MAGIC_NUMBER.to_bytes(10, "little")
_LEGACY_START = 16  # bytes within which it ends
_COPY_AGAIN = "copy or download it again"
_ADVICE = re.compile(r"weights.only|safe.globals|pickle.module|trusted|github", re.IGNORECASE)


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
    refuse_foreign(path, "a PyTorch file")
    with path.open("rb") as handle:
        mapped = handle.read(len(_ZIP_MAGIC)) == _ZIP_MAGIC
    try:
        # torch warns of what it then refuses; the sentences below say it.
        with torch.serialization.safe_globals(list(allowed)), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        if mapped:
            _check_sums(path)
        return content
    except (MemoryError, InputError):
        raise
    except Exception as error:
        # A damaged pickle can end in any exception: it is a program whose text is arbitrary.
        raise _refusal(path, error) from error


def _check_sums(path: Path) -> None:
    """Compare the checksums that torch.save puts beside every tensor; torch does not, if mapped."""
    with zipfile.ZipFile(path) as archive:
        if damaged := archive.testzip():
            raise InputError(f"{damaged} in it is damaged", path=path, hint=_COPY_AGAIN)


def _refusal(path: Path, error: Exception) -> InputError:
    """Turn an error of ``torch.load`` into a sentence."""
    text = str(error)
    refused = re.search(r"GLOBAL (\S+) (?:was not an allowed|whose module)", text)
    if refused and refused[1].startswith("numpy."):
        return InputError(
            f"holds NumPy arrays (it asks for {refused[1]}), not tensors; nothing of it was run",
            path=path,
            hint="give the file of weights, as torch.save writes it",
        )
    if refused:
        return InputError(
            f"refused: it asks for {refused[1]}, which a file of weights has no use for; "
            "nothing of it was run",
            path=path,
            hint="a file of weights holds the state dict, not the pickled model; get the file from "
            "its publisher again, and do not open this one with other programs",
        )
    if "Invalid magic number" in text or _is_bare_pickle(path):
        return InputError(
            "is a pickle that torch.save has not written; nothing of it was run",
            path=path,
            hint="give the file of weights, as torch.save writes it",
        )
    return InputError(
        f"is not a complete PyTorch file ({_reason(error)})",
        path=path,
        hint=_COPY_AGAIN,
    )


def _is_bare_pickle(path: Path) -> bool:
    """Say whether a file is a pickle without the number that torch.save puts first."""
    with path.open("rb") as handle:
        head = handle.read(64)
    pickled = head[:1] == b"\x80" and head[1:2] in (b"\2", b"\3", b"\4", b"\5")
    return pickled and len(head) > _LEGACY_START and _LEGACY_MAGIC not in head


def _reason(error: Exception) -> str:
    """Return one sentence of an error, of which nothing advises to load the file without care."""
    inner = re.search(r"WeightsUnpickler error: (.+)", str(error))
    line = inner[1] if inner else (str(error) or type(error).__name__).splitlines()[0]
    if _ADVICE.search(line) or isinstance(error, KeyError):  # a KeyError's text is a bare key
        return type(error).__name__
    return line.split(". ")[0][:160]
