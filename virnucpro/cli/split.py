"""`virnucpro split`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from virnucpro import formats
from virnucpro.cli.options import DIRECTORY, FILE, POSITIVE, format_option, step

__all__ = ["split"]


@click.command()
@click.argument("fasta", nargs=-1, required=True, type=click.Path(path_type=Path, allow_dash=True))
@click.option("--sample", required=True, help="Name of the sample.")
@click.option("--shards", required=True, type=DIRECTORY, help="Directory of shards to write.")
@click.option("--records", required=True, type=FILE, help="Parquet file of records to write.")
@click.option(
    "--shard-tokens",
    type=POSITIVE,
    default=100_000_000,
    show_default=True,
    help="Maximum tokens per shard.",
)
@click.option(
    "--max-invalid-fraction",
    type=click.FloatRange(0, 1),
    default=0.5,
    show_default=True,
    help="Quarantine records of which a larger fraction of the letters becomes X.",
)
@click.option(
    "--max-unknown-fraction",
    type=click.FloatRange(0, 1),
    default=0.9,
    show_default=True,
    help="Quarantine records of which a larger fraction of the residues is X, B, Z, J or replaced.",
)
@click.option(
    "--max-record-residues",
    type=POSITIVE,
    default=100_000,
    show_default=True,
    help="Quarantine records with more residues.",
)
@click.option(
    "--input-type",
    type=click.Choice(["protein", "any", "genes"]),
    default="protein",
    show_default=True,
    help="`protein` refuses what looks like nucleotides; `any` takes all letters as residues; "
    "`genes` are GenBank files, or proteins with the headers of Prodigal.",
)
@click.option(
    "--ids",
    type=click.Choice(["first_word", "whole_header"]),
    default="first_word",
    show_default=True,
    help="Which part of a header is the id.",
)
@click.option(
    "--duplicate-ids",
    type=click.Choice(["error", "suffix"]),
    default="error",
    show_default=True,
    help="What to do when two records have the same id.",
)
@click.option(
    "--empty-samples",
    type=click.Choice(["error", "keep"]),
    default="error",
    show_default=True,
    help="What to do when no record is accepted; `keep` writes one empty shard.",
)
@click.option(
    "--exports",
    multiple=True,
    metavar="FORMAT",
    help="Refuse ids that this export of `merge` cannot hold; may be given several times.",
)
@click.option(
    "--sha256",
    multiple=True,
    metavar="HEX",
    help="Expected SHA-256 of each FASTA file, in their order.",
)
@format_option("split", formats.SPLIT_FORMAT)
@step("split", "sample", "records")
def split(
    fasta: tuple[Path, ...],
    sample: str,
    shards: Path,
    records: Path,
    sha256: tuple[str, ...],
    exports: tuple[str, ...],
    **options: Any,
) -> Any:
    """Read FASTA files, account for every record, and write shards.

    A shard holds distinct sequences. Plain, gz, bz2, xz and zst files are recognised by
    their content; ``-`` is standard input.
    """
    from virnucpro.sequences.manifest import SplitParameters
    from virnucpro.sequences.split import split as split_fasta

    if options["input_type"] == "genes":
        from virnucpro.genes.read import read_genes as reader
    else:
        from virnucpro.sequences.fasta import read_fasta as reader
    return split_fasta(
        fasta,
        sample=sample,
        shards_dir=shards,
        records=records,
        parameters=SplitParameters(exports=list(exports), **options),
        sha256=sha256,
        reader=reader,
    )
