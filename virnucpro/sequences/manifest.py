"""The manifest of a split: what was read, and the shards that came of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePath

from virnucpro.formats import SPLIT_FORMAT, read_as

__all__ = ["InputFile", "Manifest", "RecordCounts", "ShardEntry", "read_manifest"]


@dataclass(frozen=True)
class InputFile:
    """A FASTA file as it was read."""

    path: str  # as it was given
    sha256: str  # of the file's bytes, compressed or not
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
class ShardEntry:
    """A shard, whose number is its place in the manifest."""

    name: str  # the number, and the first digits of the SHA-256
    sequences: int  # distinct


@dataclass(frozen=True)
class Manifest:
    """What the later steps read of a split's ``manifest.json``."""

    sample: str
    parameters: dict[str, object]  # of the split, for provenance
    inputs: list[InputFile]
    records: RecordCounts
    shards: list[ShardEntry]
    records_sha256: str  # of records.parquet
    quarantine_sha256: str | None = None  # of quarantine.tsv; earlier versions did not tell

    @property
    def names(self) -> list[str]:
        """The shards' names, by shard number."""
        return [shard.name for shard in self.shards]


def read_manifest(shards_dir: Path) -> Manifest:
    """Read the manifest that `split` wrote beside its shards.

    Raises:
        DataError: it is missing or damaged.
        InputError: another version of the program wrote it.
    """
    return read_as(Manifest, shards_dir / "manifest.json", "split manifest", SPLIT_FORMAT)
