"""What a file is that was given as a model and is none: told by its first bytes, or its content.

torch's own messages for such files advise to load them with ``weights_only=False``, which would run
whatever the file says. None of them reaches a user.
"""

from __future__ import annotations

import argparse
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from virnucpro.errors import InputError
from virnucpro.model.config import list_names

__all__ = ["describe_content", "refuse_foreign"]

_UNPACK = "unpack it, and give what is in it"
_AGAIN = "download it again"
_LOST = "what was downloaded is not the model: look at it, and download it again"
_KINDS: tuple[tuple[bytes, str, str], ...] = (
    (
        b"version https://git-lfs",
        "a Git LFS pointer, in place of the file itself",
        "fetch the file (git lfs pull), or download it from the repository's page",
    ),
    (b"<", "a web page or XML", _LOST),
    (b"{", "JSON", _LOST),
    (b">", "a FASTA file", "were the input and the model mixed up?"),
    (b"\x93NUMPY", "a NumPy array (.npy)", "give the model that wrote it"),
    (b"\x89HDF", "an HDF5 file (of Keras or TensorFlow?)", "give weights of PyTorch"),
    (b"\x1f\x8b", "compressed with gzip", _UNPACK),
    (b"BZh", "compressed with bzip2", _UNPACK),
    (b"\xfd7zXZ", "compressed with xz", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd", _UNPACK),
    (b"GGUF", "a GGUF file of llama.cpp", "give weights of PyTorch or safetensors"),
    (b"%PDF", "a PDF", _LOST),
)
_ZIP = b"PK\x03\x04"
_HEAD = 512
_SHORTEST_TEXT = 4
_TAR = slice(257, 262)
_LENGTH = slice(0, 8)  # of a safetensors file's header, which is JSON and comes next


def refuse_foreign(path: Path, expected: str) -> None:
    """Refuse a file that is recognised as something else than it should be.

    Args:
        path: the file.
        expected: what it should be: ``a PyTorch file``, ``a safetensors file`` or ``JSON``.

    Raises:
        InputError: it is empty, or of another kind.
        OSError: it cannot be read.
    """
    what, hint = _recognise(path) or (expected, "")
    if what != expected:
        raise InputError(f"is {what}; {expected} is expected", path=path, hint=hint)


def _recognise(path: Path) -> tuple[str, str] | None:
    """Return what a file is and what to do, or None where it may hold weights."""
    with path.open("rb") as handle:
        head = handle.read(_HEAD)
    if not head:
        return "empty", _AGAIN
    if head.startswith(_ZIP):
        return _foreign_archive(path)
    if head[_TAR] == b"ustar":
        return "a tar archive", _UNPACK
    if head[_LENGTH].endswith(b"\0") and head[_LENGTH.stop :].startswith(b"{"):
        return "a safetensors file", "give the folder that has config.json beside it"
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    for first, what, hint in _KINDS:
        if start.startswith(first):
            return what, hint
    if not head.strip(b"\0"):
        return "a file of zeros", "the copy or the download broke off: make it again"
    if _is_text(head):
        return f"text ({start[:40].decode(errors='replace')!r})", _LOST
    return None


def _is_text(head: bytes) -> bool:
    """Say whether bytes begin as text does; pickles have control characters among the first."""
    start = head[:64]
    printable = all(byte in b"\t\n\r" or 0x20 <= byte < 0x7F for byte in start)
    return printable and len(start) >= _SHORTEST_TEXT


def _foreign_archive(path: Path) -> tuple[str, str] | None:
    """Return what a zip archive is that torch.save has not written; None for a damaged one too."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        return None  # cut off: torch says what is missing
    last = {Path(name).name for name in names}
    if "constants.pkl" in last:
        return "a TorchScript program", "give the weights: torch.save(model.state_dict(), FILE)"
    if "data.pkl" in last:
        return None
    if names and all(name.endswith(".npy") for name in names):
        return "NumPy arrays (.npz)", "give the model that wrote them"
    listed = f" (of {list_names(names)})" if names else " with nothing in it"
    return f"a zip archive that PyTorch has not written{listed}", _UNPACK


def describe_content(content: Any) -> str:
    """Say what was read from a file of PyTorch, to a person who expected a model."""
    if isinstance(content, Tensor):
        return f"one tensor of shape {list(content.shape)}"
    if not isinstance(content, Mapping):
        return f"one value of type {type(content).__name__}"
    arguments = content.get("args")
    if isinstance(arguments, argparse.Namespace):
        architecture = getattr(arguments, "arch", "unknown")
        return f"a model of the ESM-1 family (architecture {architecture!r})"
    names = [str(name)[:60] for name in content]
    inner = content.get("model")
    if isinstance(inner, Mapping) and inner and all("contact_head" in str(name) for name in inner):
        return "the regression weights for contacts, which stand beside a model"
    tensors = sum(isinstance(value, Tensor) for value in content.values())
    if tensors and tensors == len(content):
        return f"the {tensors} tensors of a state dict alone ({list_names(names, 2)})"
    return f"a dict with {list_names(names) or 'nothing in it'}"
