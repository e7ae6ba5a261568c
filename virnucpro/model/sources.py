"""Where weights come from: the one place that reads the word a user gave for a model."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Protocol

from torch import Tensor

from virnucpro.errors import InputError
from virnucpro.model.config import KNOWN_MODELS, ModelConfig
from virnucpro.model.demo import DemoSource
from virnucpro.model.foreign import refuse_foreign
from virnucpro.model.huggingface import HuggingFaceSource
from virnucpro.model.named import NamedSource
from virnucpro.model.published import PublishedSource

__all__ = ["Source", "find_source"]


class Source(Protocol):
    """A place to read weights from.

    Attributes:
        name: what the model is called.
        demo: whether the weights are random.
        files: what is read, for the check that nothing is overwritten.
    """

    name: str
    demo: bool
    files: tuple[Path, ...]

    def fingerprint(self) -> str | None:
        """Return a SHA-256 of the content, or None if that is not on this machine yet."""

    def read(self) -> tuple[ModelConfig, dict[str, Tensor]]:
        """Read the model's shape and its canonical state dict."""


def find_source(source: str, download_dir: Path | None = None) -> Source:
    """Find what a user's word for a model means.

    Args:
        source: ``demo``, a name of fair-esm, a ``.pt`` file in fair-esm's published structure, or a
            folder in the Hugging Face layout. A name means the model even where a file has it.
        download_dir: where downloaded files are kept; None for torch.hub's folder.

    Returns:
        The source. Nothing is downloaded yet.

    Raises:
        InputError: it is none of these, or the file or folder cannot be a model.
    """
    if source == DemoSource.name:
        return DemoSource()
    if source in KNOWN_MODELS:
        return NamedSource(source, download_dir)
    path = Path(source)
    if path.is_dir():
        return HuggingFaceSource(path)
    if path.is_file() and path.suffix != ".safetensors":
        return PublishedSource(path)
    raise _unknown(source, path)


def _unknown(source: str, path: Path) -> InputError:
    """Say what is wrong with a word that means nothing, and what might have been meant."""
    if path.is_file():
        refuse_foreign(path, "a safetensors file")
        return InputError(
            "a single safetensors file does not say what it holds",
            path=path,
            hint="give the folder that has config.json beside it",
        )
    close = difflib.get_close_matches(path.name.removesuffix(".pt"), KNOWN_MODELS, n=2, cutoff=0.6)
    if path.suffix == ".pt" or len(path.parts) > 1:
        meant = f"for fair-esm's file give the name {close[0]}" if close else None
        return InputError("no such file or folder", path=source, hint=meant)
    meant = f"did you mean {' or '.join(close)}? " if close else ""
    return InputError(
        f"unknown model {source!r}",
        hint=f"{meant}known: {', '.join(KNOWN_MODELS)}; or a .pt file, or a folder in the "
        "Hugging Face layout",
    )
