"""The files of the genes of one input, and the sealed JSON that is written last."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from virnucpro.errors import DataError, InputError
from virnucpro.files import sha256_of, write_json
from virnucpro.formats import GENES_FORMAT, read_as
from virnucpro.sequences.manifest import InputFile

__all__ = ["SUFFIXES", "GenesParameters", "GenesReceipt", "beside", "read_receipt", "write_receipt"]

SUFFIXES = (".faa.gz", ".gff.gz", ".contigs.parquet")
"""Files of genes: proteins with Prodigal's headers, places, and a row for each contig."""


@dataclass(frozen=True)
class GenesParameters:
    """How genes are found."""

    max_contig_bases: int = 20_000_000  # in longer contigs none are looked for

    def check(self) -> None:
        """Refuse what cannot be.

        Raises:
            InputError: a parameter is out of range.
        """
        if not 1 <= self.max_contig_bases < 1 << 31:
            raise InputError(
                f"max_contig_bases is {self.max_contig_bases}, not in [1, {(1 << 31) - 1}]"
            )


@dataclass(frozen=True)
class GenesReceipt:
    """What was found on the contigs of one file."""

    input: InputFile  # its records are the contigs
    parameters: GenesParameters
    programs: dict[str, str]  # versions of those that found the genes
    genes: int
    statuses: dict[str, int]  # contigs by status
    changes: dict[str, int]  # letters of the contigs that were looked at, by kind
    files: dict[str, str]  # SHA-256 by suffix


def beside(prefix: Path, suffix: str) -> Path:
    """Return one of the files of a prefix, as ``results/s/genes/0`` is one."""
    return prefix.with_name(prefix.name + suffix)


def write_receipt(prefix: Path, receipt: GenesReceipt) -> None:
    """Write the JSON of a prefix, sealed."""
    content = {"format": GENES_FORMAT, **asdict(receipt)}
    write_json(beside(prefix, ".json"), content, sealed=True)


def read_receipt(prefix: Path, *, verify: tuple[str, ...] = SUFFIXES) -> GenesReceipt:
    """Read the JSON of a prefix, and check files against it.

    Args:
        prefix: of the files.
        verify: suffixes of the files to check.

    Raises:
        DataError: a file is missing, or is not what was written.
        InputError: another version of the program wrote it.
    """
    receipt = read_as(GenesReceipt, beside(prefix, ".json"), "receipt of genes", GENES_FORMAT)
    for suffix in verify:
        path = beside(prefix, suffix)
        if not path.is_file() or sha256_of(path) != receipt.files.get(suffix):
            raise DataError(
                "is missing, or not what was written with its receipt",
                path=path,
                hint="remove the .json beside it to have the genes found again",
            )
    return receipt
