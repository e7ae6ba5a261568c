"""How long a plan will take on devices whose rate is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from virnucpro.errors import DataError
from virnucpro.files import read_json

__all__ = ["estimate_seconds"]


def estimate_seconds(computed_tokens: int, cache_dir: Path | None) -> list[dict[str, Any]] | None:
    """Estimate the time on each device that was measured.

    Args:
        computed_tokens: tokens of all batches, filled up to the token budget.
        cache_dir: holds ``rates.json``: ``"device/model/dtype"`` -> tokens per second.

    Returns:
        An entry a device, model and dtype, in seconds; None where no rate is known.

    Raises:
        DataError: ``rates.json`` is damaged.
    """
    path = None if cache_dir is None else cache_dir / "rates.json"
    if path is None or not path.exists():
        return None
    estimates = []
    for key, rate in sorted(read_json(path).items()):
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
                "tokens_per_second": rate,
                "seconds": round(computed_tokens / rate, 1),
            }
        )
    return estimates or None
