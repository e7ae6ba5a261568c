"""ESM-2 in the form in which fair-esm publishes it: a ``.pt`` file.

The structure is that of ``esm.pretrained._load_model_and_alphabet_core_v2``:
``{"cfg": {"model": argparse.Namespace(...)}, "model": {"encoder.sentence_encoder.<name>": ...}}``.
The regression weights for contacts, which fair-esm demands beside the file, are not needed for
embeddings and not looked for.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from torch import Tensor

from virnucpro.errors import InputError
from virnucpro.files import sha256_of
from virnucpro.model.canonical import canonical_state, make_config
from virnucpro.model.config import ModelConfig
from virnucpro.model.foreign import describe_content
from virnucpro.model.pickles import load_tensors_only

__all__ = ["PublishedSource", "read_published"]


_EXPECTED = (
    "an ESM-2 .pt of fair-esm (cfg and model) is expected, or a folder in the Hugging Face layout; "
    "ESM-1, ESM-1b, ESM-1v and MSA Transformer are not ESM-2"
)


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
    if not (isinstance(content, dict) and isinstance(content.get("cfg"), dict)):
        raise InputError(
            f"holds {describe_content(content)}, and is not in the structure of fair-esm's ESM-2 "
            "files (no cfg)",
            path=path,
            hint=_EXPECTED,
        )
    try:
        cfg = vars(content["cfg"]["model"])
        state = dict(content["model"])
        layers, dim = cfg["encoder_layers"], cfg["encoder_embed_dim"]
        heads, token_dropout = cfg["encoder_attention_heads"], cfg["token_dropout"]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"holds {describe_content(content)}, and is not in the structure of fair-esm's ESM-2 "
            f"files ({type(error).__name__}: {error})",
            path=path,
            hint=_EXPECTED,
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
