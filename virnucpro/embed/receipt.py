"""The receipt of a shard's embeddings: what was asked for, and what came of it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from virnucpro.files import write_json
from virnucpro.formats import EMBED_FORMAT, read_as

__all__ = ["Quarantined", "ShardReceipt", "ShardRequest", "read_receipt", "write_receipt"]


@dataclass(frozen=True)
class Quarantined:
    """A sequence without an embedding."""

    row: int  # in the shard's array
    key: str  # in hexadecimal
    reason: str
    detail: str


@dataclass(frozen=True)
class ShardRequest:
    """What is asked for: all that is known before the work and that the values depend on."""

    shard: str
    plan_hash: str  # content hash of the plan
    sequences: int
    model: str
    weights_sha256: str
    demo: bool  # whether the weights are random
    requested_layers: list[int]  # negative ones count from the end
    pooling: str
    pseudo_perplexity: str
    compute_dtype: str
    dtype: str  # of the array
    device: str
    versions: dict[str, str]  # of virnucpro and torch


@dataclass(frozen=True)
class ShardReceipt(ShardRequest):
    """What the receipt of a shard's embeddings says."""

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
    closeness: dict[str, float] | None = None  # of float8 to float32

    @property
    def dimension(self) -> int:
        """Dimension of an embedding."""
        return self.shape[2]

    def quarantined_by_row(self) -> dict[int, Quarantined]:
        """Return the sequences without an embedding, by row."""
        return {sequence.row: sequence for sequence in self.quarantined}

    def differing(self, request: ShardRequest) -> list[str]:
        """Return the fields of a request that this is not the receipt of."""
        return [name for name, value in vars(request).items() if getattr(self, name) != value]


def write_receipt(path: Path, receipt: ShardReceipt) -> None:
    """Write a receipt; `closeness` stands in it where there is one."""
    content = {"format": EMBED_FORMAT, **dataclasses.asdict(receipt)}
    if receipt.closeness is None:
        del content["closeness"]
    write_json(path, content, sealed=True)


def read_receipt(path: Path) -> ShardReceipt:
    """Read the receipt of a shard's embeddings.

    Raises:
        InputError: another version of the program wrote it.
        DataError: it is missing, or a field is missing or of another type.
    """
    return read_as(ShardReceipt, path, "embedding receipt", EMBED_FORMAT)
