"""From converted weights to a model on a device, in the time that reading them takes."""

from __future__ import annotations

import logging
import time
from concurrent.futures import Future
from pathlib import Path

import torch

from virnucpro.files import sha256_in_background
from virnucpro.model.esm2 import PackedESM2
from virnucpro.model.float8 import Float8ESM2
from virnucpro.model.weights import load_weights, verify_model

__all__ = ["load_model"]

logger = logging.getLogger(__name__)


def load_model(
    weights: Path,
    receipt: Path,
    *,
    dtype: torch.dtype,
    device: torch.device,
    head: bool = False,
    sha256: Future[str] | None = None,
) -> PackedESM2:
    """Load converted weights onto a device, and check them against their receipt meanwhile.

    Args:
        weights: the safetensors file of `virnucpro.model.weights.fetch_model`.
        receipt: its receipt.
        dtype: what the model computes in.
        device: where it runs.
        head: load the language-model head too.
        sha256: the hash of the weights, begun earlier; begun here where it is left out.

    Returns:
        The model, in evaluation mode.

    Raises:
        DataError: a file is missing or damaged, or the two do not belong together.
        InputError: a file has another format number, or the weights have no head.
    """
    start = time.perf_counter()
    sha256 = sha256 or sha256_in_background(weights)
    kind = Float8ESM2 if dtype == torch.float8_e4m3fn else PackedESM2
    config, state = load_weights(weights, None)
    model = kind.from_state_dict(config, state, dtype=dtype, device=device, head=head)
    loaded = time.perf_counter() - start
    verify_model(weights, receipt, sha256.result())
    logger.info(
        "model: %s, %s attention, loaded in %.1f s, checked in %.1f s",
        model.config.name,
        model.attend.name,
        loaded,
        time.perf_counter() - start,
    )
    return model
