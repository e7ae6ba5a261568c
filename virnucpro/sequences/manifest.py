"""The manifest of a split: what was read, and the shards that came of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePath
from typing import Any

from virnucpro.errors import InputError
from virnucpro.files import write_json
from virnucpro.formats import SPLIT_FORMAT, read_as

__all__ = [
    "InputFile",
    "Lengths",
    "Manifest",
    "RecordCounts",
    "ShardEntry",
    "SplitParameters",
    "read_manifest",
    "write_manifest",
]

_CHOICES = {
    "input_type": ("protein", "any", "genes"),
    "ids": ("first_word", "whole_header"),
    "duplicate_ids": ("error", "suffix"),
    "empty_samples": ("error", "keep"),
}


@dataclass(frozen=True)
class SplitParameters:
    """Which records are kept, how they are divided; `virnucpro.sequences.split.split` says more."""

    shard_tokens: int = 100_000_000  # that no shard exceeds, unless one sequence does
    max_invalid_fraction: float = 0.5  # of a record's residues: letters replaced by X
    max_unknown_fraction: float = 0.9  # of a record's residues: X, B and Z, and those letters
    max_record_residues: int = 100_000  # letters of a record in the file
    input_type: str = "protein"
    ids: str = "first_word"
    duplicate_ids: str = "error"
    empty_samples: str = "error"
    exports: list[str] = field(default_factory=list)  # that refuse ids that they cannot have

    def check(self) -> None:
        """Refuse what cannot be, by its name.

        Raises:
            InputError: a parameter is out of range.
        """
        if self.shard_tokens < 1:
            raise InputError(f"shard_tokens is {self.shard_tokens}, it must be at least 1")
        for name in ("max_invalid_fraction", "max_unknown_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} is {getattr(self, name)}, not in [0, 1]")
        if not 1 <= self.max_record_residues < 1 << 31:
            raise InputError(
                f"max_record_residues is {self.max_record_residues}, not in [1, {(1 << 31) - 1}]"
            )
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                listed = " or ".join(map(repr, choices))
                raise InputError(f"{name} is {getattr(self, name)!r}, not {listed}")


@dataclass(frozen=True)
class InputFile:
    """A FASTA file as it was read."""

    path: str  # as it was given
    bytes: int  # compressed ones where it is
    sha256: str  # of those bytes
    records: int

    @property
    def name(self) -> str:
        """The file's name without folders."""
        return PurePath(self.path).name


@dataclass(frozen=True)
class RecordCounts:
    """Records of the input; read = accepted + quarantined."""

    read: int
    accepted: int
    quarantined: int
    normalised: int  # accepted ones that normalising changed
    duplicates: int  # accepted ones whose sequence an earlier one has
    renamed: int  # whose id was taken


@dataclass(frozen=True)
class Lengths:
    """Lengths of the distinct sequences, in residues; zeros where there is none."""

    min: int = 0
    median: float = 0.0
    mean: float = 0.0
    max: int = 0


@dataclass(frozen=True)
class ShardEntry:
    """A shard, whose number is its place in the manifest."""

    name: str  # the number, and the first digits of the SHA-256
    sequences: int  # distinct
    tokens: int  # residues, and two for each sequence
    sha256: str  # of the file


@dataclass(frozen=True)
class Manifest:
    """The ``manifest.json`` of a split."""

    sample: str
    parameters: dict[str, object]  # `SplitParameters` of the version that split, for provenance
    inputs: list[InputFile]
    records: RecordCounts
    quarantined: dict[str, int]  # records by reason
    changes: dict[str, int]  # letters of accepted records, by kind of change
    left_out: dict[str, int]  # what is no residue and no text, by kind
    sequences: int  # distinct
    residues: int  # of those
    tokens: int  # of those
    lengths: Lengths
    shards: list[ShardEntry]
    records_sha256: str  # of records.parquet
    quarantine_sha256: str | None = None  # of quarantine.tsv; earlier versions did not tell

    @property
    def names(self) -> list[str]:
        """The shards' names, by shard number."""
        return [shard.name for shard in self.shards]


def write_manifest(shards_dir: Path, manifest: Manifest) -> None:
    """Write ``manifest.json``, sealed."""
    content: dict[str, Any] = {"format": SPLIT_FORMAT, **asdict(manifest)}
    write_json(shards_dir / "manifest.json", content, sealed=True)


def read_manifest(shards_dir: Path) -> Manifest:
    """Read the manifest that `split` wrote beside its shards.

    Raises:
        DataError: it is missing or damaged.
        InputError: another version of the program wrote it.
    """
    return read_as(Manifest, shards_dir / "manifest.json", "split manifest", SPLIT_FORMAT)
