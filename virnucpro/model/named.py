"""A model by its fair-esm name: found where other programs keep it on this machine, or downloaded.

Searched in this order: the given folder; torch hub's cache, where fair-esm keeps its files; the
cache of the Hugging Face hub, where transformers keeps its own.
"""

from __future__ import annotations

import http.client
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from virnucpro.errors import DataError, InputError
from virnucpro.model.config import KNOWN_MODELS, ModelConfig
from virnucpro.model.download import download
from virnucpro.model.huggingface import HuggingFaceSource
from virnucpro.model.published import PublishedSource, read_published

__all__ = ["ADDRESS", "LICENCE", "NamedSource", "download_bytes", "find_local"]

logger = logging.getLogger(__name__)

ADDRESS = "https://dl.fbaipublicfiles.com/fair-esm/models/{name}.pt"
LICENCE = "MIT"

# The published files of these hold float16, those of the smaller models float32.
_PUBLISHED_IN_FLOAT16 = ("esm2_t36_3B_UR50D", "esm2_t48_15B_UR50D")
_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
_YES = ("1", "ON", "YES", "TRUE")


class NamedSource:
    """A source of weights (see `virnucpro.model.sources.Source`) that a name stands for.

    Args:
        name: one of fair-esm's ESM-2 names.
        folder: where the file is looked for and downloaded to, or None for torch hub's folder.
    """

    demo = False

    def __init__(self, name: str, folder: Path | None) -> None:
        self.name = name
        self.target = (folder or _torch_hub()) / f"{name}.pt"
        found = find_local(name, folder)
        self.files = found.files if found else (self.target,)
        self._found = found
        self._read = False

    def fingerprint(self) -> str | None:
        """Hash what was read; None before: a name means the same weights wherever they are."""
        return self._found.fingerprint() if self._found and self._read else None

    def read(self) -> tuple[ModelConfig, dict[str, Tensor]]:
        """Read the weights, downloading them if they are not on this machine.

        Raises:
            DataError: the download failed or is forbidden; the text says what to put where by hand.
            InputError: the file that is there is damaged or something else.
        """
        if self._found is None:
            _download(self.name, self.target)
            self._found = PublishedSource(self.target)
        else:
            logger.info("%s: found in %s, not downloaded", self.name, self._found.files[0].parent)
        self._read = True
        return self._found.read()


def find_local(name: str, folder: Path | None = None) -> PublishedSource | HuggingFaceSource | None:
    """Find a named model on this machine.

    Args:
        name: one of fair-esm's ESM-2 names.
        folder: a folder to look into first, or None.
    """
    for place in _folders(folder):
        if (path := place / f"{name}.pt").is_file():
            return PublishedSource(path)
    for snapshot in _snapshots(name):
        try:
            return HuggingFaceSource(snapshot, name)
        except InputError as error:  # only the tokeniser was fetched, say
            logger.info("%s: not used: %s", name, error)
    return None


def _folders(folder: Path | None) -> list[Path]:
    return [place for place in (folder, _torch_hub()) if place is not None]


def _torch_hub() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints"


def _hub_cache() -> Path:
    """Return the Hugging Face hub's cache, by the rules of the package huggingface_hub."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if given := os.environ.get(variable):
            return Path(given).expanduser()
    general = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.environ.get("HF_HOME") or f"{general}/huggingface"
    return Path(home).expanduser() / "hub"


def _snapshots(name: str) -> Iterator[Path]:
    """Yield the cached revisions of a model of Meta AI, the current one first."""
    model = _hub_cache() / f"models--facebook--{name}"
    current = model / "refs" / "main"
    first = current.read_text().strip() if current.is_file() else ""
    if (model / "snapshots").is_dir():
        snapshots = sorted((model / "snapshots").iterdir())
        yield from sorted(snapshots, key=lambda snapshot: snapshot.name != first)


def download_bytes(config: ModelConfig) -> int:
    """Estimate the size of a published file from its parameters."""
    return config.parameters(lm_head=True) * (2 if config.name in _PUBLISHED_IN_FLOAT16 else 4)


def _forbidden() -> str | None:
    """Return the switch that forbids downloads, read as the package huggingface_hub does."""
    return next((name for name in _OFFLINE if os.environ.get(name, "").upper() in _YES), None)


def _download(name: str, target: Path) -> None:
    """Download a published file; one that cannot be read never gets its name."""
    address = ADDRESS.format(name=name)
    if switch := _forbidden():
        raise DataError(
            f"{name} is not on this machine, and {switch} is set: nothing is downloaded",
            hint=_by_hand(name, address, target),
        )
    size = download_bytes(KNOWN_MODELS[name]) / 1e9
    facts = f"about {size:.2f} GB, {LICENCE} licence"
    logger.info("%s: downloading %s (%s) to %s", name, address, facts, target)

    def check(path: Path) -> None:
        read_published(path, name)

    try:
        download(address, target, check)
    except (OSError, http.client.HTTPException) as error:
        raise DataError(
            f"could not download {address} ({error})",
            hint=_by_hand(name, address, target),
        ) from error
    except InputError as error:
        raise DataError(
            f"the download of {address} is not usable: {error.message}",
            hint=f"try again, or get {address} yourself and put it at {target}",
        ) from error


def _by_hand(name: str, address: str, target: Path) -> str:
    """Say exactly what to copy where on a machine without network."""
    return f"""on a machine with network get the file, and copy it to this one:
      curl --location --remote-name {address}
      {target}
  Or copy the repository huggingface.co/facebook/{name} into any folder of this
  machine, and give the folder's path in place of the name.
  Looked for in {target.parent}, {_torch_hub()} and {_hub_cache()}.
  If the network was away for a moment: run again, and the download goes on where it broke off."""
