"""How long a plan will take on devices whose rate is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from virnucpro.errors import DataError
from virnucpro.files import read_json

__all__ = ["SHIPPED_RATES", "estimate_seconds"]

# Tokens per second as in benchmarks/RESULTS.md, so that a first plan has an estimate too.
SHIPPED_RATES = {
    "NVIDIA H100 80GB HBM3/esm2_t6_8M_UR50D/float16": 10_782_536,
    "NVIDIA H100 80GB HBM3/esm2_t12_35M_UR50D/float16": 3_444_640,
    "NVIDIA H100 80GB HBM3/esm2_t30_150M_UR50D/float16": 1_077_876,
    "NVIDIA H100 80GB HBM3/esm2_t33_650M_UR50D/float16": 351_382,
    "NVIDIA H100 80GB HBM3/esm2_t36_3B_UR50D/float16": 98_107,
}


def estimate_seconds(computed_tokens: int, cache_dir: Path | None) -> list[dict[str, Any]]:
    """Estimate the time on each device that was measured.

    Args:
        computed_tokens: tokens of all batches, filled up to the token budget.
        cache_dir: holds ``rates.json``: ``"device/model/dtype"`` -> tokens per second, measured
            here; these take the place of the shipped ones.

    Returns:
        An entry a device, model and dtype, in seconds; ``measured_here`` says whose rate it is.

    Raises:
        DataError: ``rates.json`` is damaged.
    """
    path = None if cache_dir is None else cache_dir / "rates.json"
    measured = {} if path is None or not path.exists() else read_json(path)
    estimates = []
    for key, rate in sorted({**SHIPPED_RATES, **measured}.items()):
        # The model may be a path; device and dtype hold no slash.
        device, _, rest = key.partition("/")
        model, _, dtype = rest.rpartition("/")
        if not isinstance(rate, int | float) or not rate > 0:
            raise DataError(f"the rate of {key} is {rate!r}", path=path, hint="remove the file")
        estimates.append(
            {
                "device": device,
                "model": model,
                "dtype": dtype,
                "measured_here": key in measured,
                "tokens_per_second": rate,
                "seconds": round(computed_tokens / rate, 1),
            }
        )
    return estimates
