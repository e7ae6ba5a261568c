"""ESM-2 in the form in which fair-esm publishes it: a ``.pt`` file, local or to be downloaded.

The structure is that of ``esm.pretrained._load_model_and_alphabet_core_v2``:
``{"cfg": {"model": argparse.Namespace(...)}, "model": {"encoder.sentence_encoder.<name>": ...}}``.
The regression weights for contacts, which fair-esm demands beside the file, are not needed for
embeddings and not looked for.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import logging
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from virnucpro.errors import DataError, InputError
from virnucpro.files import atomic_path, sha256_of
from virnucpro.model.canonical import canonical_state, make_config
from virnucpro.model.config import ModelConfig
from virnucpro.model.pickles import load_tensors_only

__all__ = ["ADDRESS", "DownloadedSource", "PublishedSource", "read_published"]

logger = logging.getLogger(__name__)

ADDRESS = "https://dl.fbaipublicfiles.com/fair-esm/models/{name}.pt"
_STALLED_SECONDS = 60.0


class PublishedSource:
    """A local ``.pt`` file as a source of weights (see `virnucpro.model.sources.Source`)."""

    demo = False

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.stem
        self.files: tuple[Path, ...] = (path,)

    def fingerprint(self) -> str | None:
        """Hash the file."""
        return sha256_of(self.path)

    def read(self) -> tuple[ModelConfig, dict[str, Tensor]]:
        """Read the weights, mapped into memory."""
        return read_published(self.path, self.name)


class DownloadedSource(PublishedSource):
    """A model by its fair-esm name, downloaded to where fair-esm itself would keep it.

    Args:
        name: one of fair-esm's ESM-2 names.
        folder: where the file is kept, or None for torch.hub's folder of checkpoints.
    """

    def __init__(self, name: str, folder: Path | None) -> None:
        folder = folder or Path(torch.hub.get_dir()) / "checkpoints"
        super().__init__(folder / f"{name}.pt")

    def fingerprint(self) -> str | None:
        """Hash the file, or give None if it is not downloaded."""
        return super().fingerprint() if self.path.exists() else None

    def read(self) -> tuple[ModelConfig, dict[str, Tensor]]:
        """Read the weights, downloading them if they are not there.

        Raises:
            DataError: the download failed; the text says what to put where by hand.
            InputError: the file that is there is damaged or something else.
        """
        if self.path.exists():
            logger.info("%s: using %s", self.name, self.path)
        else:
            _download(self.name, self.path)
        return super().read()


def read_published(path: Path, name: str) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Read an ESM-2 ``.pt`` file in the published structure.

    Args:
        path: the file.
        name: what to call the model.

    Returns:
        The model's shape and its canonical state dict, in the file's dtype.

    Raises:
        InputError: the file is damaged, would run code, or does not hold an ESM-2 model.
    """
    content = load_tensors_only(path, [argparse.Namespace])
    try:
        cfg = vars(content["cfg"]["model"])
        state = dict(content["model"])
        layers, dim = cfg["encoder_layers"], cfg["encoder_embed_dim"]
        heads, token_dropout = cfg["encoder_attention_heads"], cfg["token_dropout"]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"is not in the structure of fair-esm's ESM-2 files ({type(error).__name__}: {error})",
            path=path,
            hint="ESM-1, ESM-1b, ESM-1v and MSA Transformer files are not ESM-2",
        ) from error
    if token_dropout is not True:
        raise InputError(
            f"has token_dropout {token_dropout!r}; ESM-2 has True, and its embeddings are scaled "
            "by it",
            path=path,
        )
    config = make_config(name, layers, dim, heads, path)
    named = {_without_prefix(str(key)): tensor for key, tensor in state.items()}
    return config, canonical_state(config, named, path)


def _without_prefix(name: str) -> str:
    """Take off what fairseq put before the names (``upgrade_state_dict`` in esm.pretrained)."""
    inner = name.removeprefix("encoder.sentence_encoder.")
    return inner if inner != name else name.removeprefix("encoder.")


def _download(name: str, target: Path) -> None:
    """Download a published file as one whole; a file that cannot be read never gets its name."""
    address = ADDRESS.format(name=name)
    logger.info("%s: downloading %s to %s", name, address, target)
    try:
        with atomic_path(target) as temporary:
            with _stall_limit(_STALLED_SECONDS):
                torch.hub.download_url_to_file(
                    address, str(temporary), progress=sys.stderr.isatty()
                )
            read_published(temporary, name)
    except (OSError, http.client.HTTPException) as error:
        raise DataError(
            f"could not download {address} ({error})",
            hint=f"on a machine with network get {address} and put it at {target}",
        ) from error
    except InputError as error:
        raise DataError(
            f"the download of {address} is not usable: {error.message}",
            hint=f"try again, or get {address} yourself and put it at {target}",
        ) from error


@contextlib.contextmanager
def _stall_limit(seconds: float) -> Iterator[None]:
    """End a connection that is silent for long; torch.hub sets no limit of its own."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
