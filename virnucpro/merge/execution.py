"""Whether the shards of a sample were embedded in the same way, and on what."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from virnucpro.embed.receipt import ShardReceipt
from virnucpro.errors import DataError

__all__ = ["Execution", "check_execution"]

logger = logging.getLogger(__name__)

_MUST_AGREE = (
    *("model", "weights_sha256", "layers", "pooling", "pseudo_perplexity"),
    *("compute_dtype", "dtype", "dimension"),
)


@dataclass(frozen=True)
class Execution:
    """What a sample's shards ran on: distinct values, in shard order."""

    device: list[str]
    backend: list[str]
    tokens_per_step: list[int]
    versions: list[dict[str, str]]

    @property
    def differing(self) -> list[str]:
        """The fields in which shards differ."""
        return [field for field, values in vars(self).items() if len(values) > 1]


def check_execution(receipts: Sequence[ShardReceipt]) -> Execution:
    """Check that all shards were computed in the same way.

    Weights, layers, pooling, dtypes and dimension must be the same. Device, backend, tokens per
    step and versions may differ, for they only change the last bits; that is logged.

    Args:
        receipts: of at least one verified shard.

    Raises:
        DataError: two shards differ in a field that must agree; both are named.
    """
    first = receipts[0]
    for receipt in receipts[1:]:
        for field in _MUST_AGREE:
            expected, found = getattr(first, field), getattr(receipt, field)
            if found != expected:
                raise DataError(
                    f"{field} differs between shards: {first.shard} has {expected}, "
                    f"{receipt.shard} has {found}",
                    hint="embed all shards of a sample with the same weights and options",
                )
    return Execution(**{field.name: _distinct(field.name, receipts) for field in fields(Execution)})


def _distinct(field: str, receipts: Sequence[ShardReceipt]) -> list[Any]:
    values: list[Any] = []
    for receipt in receipts:
        if getattr(receipt, field) not in values:
            values.append(getattr(receipt, field))
    if len(values) > 1:
        logger.warning(
            "shards differ in %s: %s; values agree within rounding, not bit for bit",
            field,
            ", ".join(map(str, values)),
        )
    return values
