"""Weights on disk: converted once into one safetensors file with a receipt, checked at every load.

A conversion writes the weights, then the receipt. Weights without the receipt that names their hash
count as absent.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from torch import Tensor

from virnucpro.errors import DataError, InputError, VirnucproError
from virnucpro.files import sha256_of
from virnucpro.formats import MODEL_FORMAT, check_format
from virnucpro.model.canonical import tensor_problems
from virnucpro.model.config import ModelConfig
from virnucpro.model.receipt import Receipt, read_receipt, write_receipt
from virnucpro.model.sources import Source, find_source
from virnucpro.model.tensorfile import read_tensors, write_tensors

__all__ = ["fetch_model", "load_weights", "verify_model"]

logger = logging.getLogger(__name__)

_FETCH_AGAIN = "run `virnucpro model fetch` again"


def fetch_model(
    source: str, weights: Path, receipt: Path, *, download_dir: Path | None = None
) -> dict[str, Any]:
    """Get a model's weights and convert them, unless that is done already.

    Args:
        source: ``demo``, a name of fair-esm, a ``.pt`` file, or a folder in the Hugging Face
            layout.
        weights: the safetensors file to write, in the source's dtype.
        receipt: the receipt to write, last.
        download_dir: where downloaded files are kept; None for torch.hub's folder.

    Returns:
        The receipt.

    Raises:
        InputError: the source does not exist, is damaged, dangerous, not an ESM-2 model, or holds
            NaN or infinity.
        DataError: a download failed.
    """
    origin = find_source(source, download_dir)
    taken = {path.resolve() for path in origin.files}
    for target in (weights, receipt):
        if target.resolve() in taken:
            raise InputError("would overwrite its own source", path=target)
    if origin.demo:
        _warn_of_demo()
    fingerprint = origin.fingerprint()
    done = _already_converted(source, fingerprint, weights, receipt)
    if done is not None:
        logger.info("%s: already converted in %s", done.name, weights)
        return done.to_json()
    made = _convert(origin, source, fingerprint, weights)
    write_receipt(receipt, made)
    logger.info(
        "%s: %d parameters (%s) in %s, sha256 %s",
        *(made.name, made.parameters, made.dtype, weights, made.weights_sha256),
    )
    return made.to_json()


def load_weights(weights: Path, receipt: Path | None) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Load converted weights, strictly.

    Args:
        weights: the safetensors file of `fetch_model`.
        receipt: its receipt, or None to trust the file's own header.

    Returns:
        The model's shape and its canonical state dict, mapped into memory.

    Raises:
        DataError: a file is missing, damaged or incomplete, or the two do not belong together.
        InputError: a file has another format number.
    """
    return _load(weights, None if receipt is None else read_receipt(receipt))


def verify_model(weights: Path, receipt: Path, sha256: str | None = None) -> dict[str, Any]:
    """Check converted weights in full against their receipt.

    Args:
        weights: the safetensors file of `fetch_model`.
        receipt: its receipt.
        sha256: of the file, where the caller has it already.

    Returns:
        The receipt, with the number of ``tensors`` that were checked.

    Raises:
        DataError: as of `load_weights`; also if the receipt counts other parameters, another dtype
            or another head than the file has.
        InputError: a file has another format number.
    """
    recorded = read_receipt(receipt)
    config, state = _load(weights, recorded, sha256)
    found = _describe(config, state)
    for key, value in found.items():
        if getattr(recorded, key) != value:
            raise DataError(
                f"says {key} {getattr(recorded, key)}, the weights have {value}",
                path=receipt,
                hint=_FETCH_AGAIN,
            )
    return {**recorded.to_json(), "tensors": len(state)}


def _convert(origin: Source, source: str, fingerprint: str | None, weights: Path) -> Receipt:
    """Read a source and write its weights; give the receipt that belongs to them."""
    config, state = origin.read()
    if wrong := [name for name, tensor in state.items() if not tensor.isfinite().all()]:
        raise InputError(
            f"holds NaN or infinity in {wrong[0]} and {len(wrong) - 1} more tensors",
            path=source,
            hint="the file is damaged, or training it went wrong: get it again from its publisher",
        )
    metadata = {"format": MODEL_FORMAT, "name": config.name, "layers": config.layers}
    metadata |= {"dim": config.dim, "heads": config.heads}
    write_tensors(weights, state, {key: str(value) for key, value in metadata.items()})
    return Receipt(
        name=config.name,
        source=source,
        source_sha256=fingerprint or origin.fingerprint() or "",
        weights_sha256=sha256_of(weights),
        layers=config.layers,
        dim=config.dim,
        heads=config.heads,
        demo=origin.demo,
        **_describe(config, state),
    )


def _describe(config: ModelConfig, state: dict[str, Tensor]) -> dict[str, Any]:
    """Return what a receipt says of the tensors themselves."""
    has_lm_head = "lm_head.bias" in state
    return {
        "parameters": config.parameters(lm_head=has_lm_head),
        "dtype": str(state["embed_tokens.weight"].dtype).removeprefix("torch."),
        "has_lm_head": has_lm_head,
    }


def _already_converted(
    source: str, fingerprint: str | None, weights: Path, receipt: Path
) -> Receipt | None:
    """Return the receipt of an earlier conversion of the same source, if that is whole.

    A source that is not on this machine any more (a deleted download) is taken at its name.
    """
    if not receipt.exists():
        return None
    try:
        recorded = read_receipt(receipt)
        _load(weights, recorded)
    except VirnucproError as error:
        logger.warning("converting again, for the earlier conversion is not usable: %s", error)
        return None
    if recorded.source != source or fingerprint not in (None, recorded.source_sha256):
        logger.info("converting again: %s was made from %s", weights, recorded.source)
        return None
    return recorded


def _load(
    weights: Path, recorded: Receipt | None, sha256: str | None = None
) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Read a converted file; check its header, its tensors and, with a receipt, its hash."""
    try:
        metadata, state = read_tensors(weights)
    except DataError as error:
        raise DataError(error.message, path=weights, hint=_FETCH_AGAIN) from error
    config = _header_config(metadata, weights)
    if recorded is not None:
        _compare_with_receipt(weights, config, recorded, sha256 or sha256_of(weights))
    if problems := tensor_problems(config, state):
        raise DataError(
            f"is not {config.name}: {'; '.join(problems)}", path=weights, hint=_FETCH_AGAIN
        )
    return config, state


def _header_config(metadata: dict[str, str], weights: Path) -> ModelConfig:
    """Read the model's shape from the header that `fetch_model` wrote."""
    try:
        number, layers, dim, heads = (
            int(metadata[key]) for key in ("format", "layers", "dim", "heads")
        )
        check_format("model weights", number, MODEL_FORMAT, path=weights)
        return ModelConfig(metadata["name"], layers, dim, heads)
    except (KeyError, ValueError) as error:
        raise DataError(
            f"was not written by `virnucpro model fetch` ({type(error).__name__}: {error})",
            path=weights,
            hint="convert the model with `virnucpro model fetch`",
        ) from error


def _compare_with_receipt(
    weights: Path, config: ModelConfig, recorded: Receipt, found: str
) -> None:
    """Refuse weights that are not those of the receipt."""
    if config != recorded.config:
        raise DataError(
            f"holds {config}, its receipt is for {recorded.config}",
            path=weights,
            hint=f"weights and receipt of two models were mixed up; {_FETCH_AGAIN}",
        )
    if found != recorded.weights_sha256:
        raise DataError(
            f"has sha256 {found}, its receipt says {recorded.weights_sha256}",
            path=weights,
            hint=f"the file is damaged or was changed; {_FETCH_AGAIN}",
        )


def _warn_of_demo() -> None:
    """Say that the demonstration model is one."""
    line = "*" * 70
    logger.warning(line)
    logger.warning("'demo' has RANDOM weights. It shows that the workflow runs.")
    logger.warning("Its embeddings carry NO BIOLOGY: do not use them for anything.")
    logger.warning(line)
