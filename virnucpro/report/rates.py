"""How long a plan will take on devices whose rate is known."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from virnucpro.errors import DataError
from virnucpro.files import read_json
from virnucpro.formats import parse

__all__ = ["SHIPPED_RATES", "Estimate", "estimate_seconds"]

logger = logging.getLogger(__name__)

# Tokens per second as in benchmarks/RESULTS.md, so that a first plan has an estimate too.
SHIPPED_RATES = {
    "NVIDIA H100 80GB HBM3/esm2_t6_8M_UR50D/float16": 10_782_536,
    "NVIDIA H100 80GB HBM3/esm2_t12_35M_UR50D/float16": 3_444_640,
    "NVIDIA H100 80GB HBM3/esm2_t30_150M_UR50D/float16": 1_077_876,
    "NVIDIA H100 80GB HBM3/esm2_t33_650M_UR50D/float16": 351_382,
    "NVIDIA H100 80GB HBM3/esm2_t36_3B_UR50D/float16": 98_107,
}


@dataclass(frozen=True)
class Estimate:
    """How long a device will take with a model."""

    device: str
    model: str
    dtype: str  # that the model computes in
    measured_here: bool  # else the rate is a shipped one
    tokens_per_second: float
    seconds: float


@dataclass(frozen=True)
class _Rate:
    """A rate as `virnucpro.embed.rates` keeps it."""

    rate_of: str  # device/model/dtype
    tokens_per_second: float


def estimate_seconds(computed_tokens: int, cache_dir: Path | None) -> list[Estimate]:
    """Estimate the time on each device that was measured, with each model and dtype.

    Args:
        computed_tokens: tokens of all batches, filled up to the token budget.
        cache_dir: has the rates that were measured here, see `virnucpro.embed.rates`; these take
            the place of the shipped ones.
    """
    measured = {} if cache_dir is None else _measured(cache_dir)
    estimates = []
    for key, rate in sorted({**SHIPPED_RATES, **measured}.items()):
        # The model may be a path; device and dtype hold no slash.
        device, _, rest = key.partition("/")
        model, _, dtype = rest.rpartition("/")
        seconds = round(computed_tokens / rate, 1)
        estimates.append(Estimate(device, model, dtype, key in measured, rate, seconds))
    return estimates


def _measured(cache_dir: Path) -> dict[str, float]:
    """Return the rates that were measured here; a damaged one is skipped with a warning."""
    rates = {}
    for path in sorted((cache_dir / "rates").glob("*.json")):
        try:
            rate = parse(_Rate, read_json(path), path)
        except (DataError, OSError) as error:
            logger.warning("a measured rate is left out of the estimates: %s", error)
            continue
        if rate.tokens_per_second > 0:
            rates[rate.rate_of] = rate.tokens_per_second
    return rates
