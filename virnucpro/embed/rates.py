"""Rates that were measured here, kept for later estimates: one small file each.

A file of its own a rate: two jobs that measure at the same time cannot lose each other's, and a
damaged one costs only itself.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

from virnucpro.files import write_json

__all__ = ["RATES", "record_rate"]

logger = logging.getLogger(__name__)

RATES = "rates"
"""Folder of the cache."""


def record_rate(
    cache_dir: Path, device: str, model: str, dtype: str, tokens_per_second: float
) -> None:
    """Keep a measured rate; where that is not possible, warn: what was measured is not lost.

    Args:
        cache_dir: the folder in which `RATES` is.
        device: the device's name.
        model: the model's name.
        dtype: what the model computes in.
        tokens_per_second: the rate.
    """
    key = f"{device}/{model}/{dtype}"
    name = hashlib.sha256(key.encode()).hexdigest()[:16]
    try:
        rate = {"rate_of": key, "tokens_per_second": round(tokens_per_second, 1)}
        write_json(cache_dir / RATES / f"{name}.json", rate, sealed=True)
    except OSError as error:
        logger.warning("the rate of %s cannot be kept for later estimates: %s", key, error)
