"""The receipts of the shards' embeddings, and that they agree with each other."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from virnucpro.errors import DataError
from virnucpro.formats import EMBED_FORMAT, read_as
from virnucpro.store.request import Request

__all__ = ["Execution", "Quarantined", "ShardReceipt", "check_agreement", "read_receipt"]

logger = logging.getLogger(__name__)

_MUST_AGREE = (
    *("model", "weights_sha256", "layers", "pooling", "pseudo_perplexity"),
    *("compute_dtype", "dtype", "dimension"),
)


@dataclass(frozen=True)
class Quarantined:
    """A sequence without an embedding."""

    row: int  # in the shard's array
    key: str  # in hexadecimal
    reason: str
    detail: str


@dataclass(frozen=True)
class ShardReceipt:
    """What the receipt of a shard's embeddings says."""

    shard: str
    plan_hash: str  # content hash of the plan
    sequences: int
    model: str
    weights_sha256: str
    demo: bool  # whether the weights are random
    pooling: str
    pseudo_perplexity: str
    compute_dtype: str
    dtype: str  # of the array
    device: str
    versions: dict[str, str]  # of virnucpro and torch
    array_sha256: str
    extras: dict[str, str]  # name -> SHA-256, of those of `EXTRA_ARRAYS` that there are
    shape: list[int]  # [sequences, layers, dim]
    layers: list[int]  # from 1; 0 are the embedded residues
    backend: str  # of the attention
    tokens_per_step: int
    quarantined: list[Quarantined]
    steps: int
    retries: int  # of steps, at half their tokens
    recomputed_float32: int  # sequences
    closeness: dict[str, float] | None = None  # of a coarse number format to float32
    request: Request | None = (
        None  # of all rows but the close ones; None if one was split for memory
    )
    known: int = 0  # sequences taken from a store
    close: list[int] | None = None  # rows of these of a close request, where such are accepted

    @property
    def dimension(self) -> int:
        """Dimension of an embedding."""
        return self.shape[2]

    def quarantined_by_row(self) -> dict[int, Quarantined]:
        """Return the sequences without an embedding, by row."""
        return {sequence.row: sequence for sequence in self.quarantined}


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


def read_receipt(path: Path) -> ShardReceipt:
    """Read the receipt of a shard's embeddings.

    Raises:
        InputError: another version of the program wrote it.
        DataError: it is missing, or a field is missing or of another type.
    """
    return read_as(ShardReceipt, path, "embedding receipt", EMBED_FORMAT)


def check_agreement(receipts: Sequence[ShardReceipt]) -> Execution:
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
