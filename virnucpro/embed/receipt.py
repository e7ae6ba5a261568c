"""The receipt of a shard's embeddings: what was asked for, and what came of it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from virnucpro.files import write_json
from virnucpro.formats import EMBED_FORMAT, read_as
from virnucpro.store.request import Request

__all__ = [
    "Float32Agreement",
    "Neighbourhood",
    "Quarantined",
    "ShardReceipt",
    "ShardRequest",
    "read_receipt",
    "write_receipt",
]


@dataclass(frozen=True)
class Quarantined:
    """A sequence without an embedding."""

    row: int  # in the shard's array
    key: str  # in hexadecimal
    reason: str
    detail: str


@dataclass(frozen=True)
class Neighbourhood:
    """How well pooled vectors keep their places among one another; of several layers the worst.

    Where proteins lie close together plain cosines are all close to one, and these tell more.
    """

    sequences: int
    centred_cosine_min: float  # to float32, of what is left without the mean over the sequences
    centred_cosine_median: float
    nearest_kept: float  # share of the sequences whose nearest other one, by plain cosine, stays


@dataclass(frozen=True)
class Float32Agreement:
    """How well a coarse number format agrees with float32; of several layers the worst."""

    sequences: int
    pooled_cosine_min: float
    pooled_cosine_median: float
    residue_cosine_min: float
    residue_cosine_median: float
    neighbourhood: Neighbourhood | None  # None below three sequences, which cannot change places


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
    agreement: Float32Agreement | None = None  # of float8 with float32
    # Of all rows but the close ones, by which a store knows them; None where a step was split.
    request: Request | None = None
    known: int = 0  # sequences taken from a store
    close: list[int] | None = None  # rows of these of a close request, where such are accepted

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
    """Write a receipt."""
    write_json(path, {"format": EMBED_FORMAT, **dataclasses.asdict(receipt)}, sealed=True)


def read_receipt(path: Path) -> ShardReceipt:
    """Read the receipt of a shard's embeddings.

    Raises:
        InputError: another version of the program wrote it.
        DataError: it is missing, or a field is missing or of another type.
    """
    return read_as(ShardReceipt, path, "embedding receipt", EMBED_FORMAT)
