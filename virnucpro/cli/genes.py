"""`virnucpro genes`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from virnucpro import formats
from virnucpro.cli.options import FILE, POSITIVE, cache_dir_option, format_option, step

__all__ = ["genes"]


@click.command()
@click.argument("contigs", type=FILE)
@click.option(
    "--output",
    "prefix",
    required=True,
    type=FILE,
    metavar="PREFIX",
    help="Write PREFIX.faa.gz, PREFIX.gff.gz, PREFIX.contigs.parquet and PREFIX.json.",
)
@click.option(
    "--max-contig-bases",
    type=POSITIVE,
    default=20_000_000,
    show_default=True,
    help="Look for no genes in longer contigs.",
)
@click.option(
    "--processes",
    type=POSITIVE,
    default=1,
    show_default=True,
    help="Processes that find genes.",
)
@cache_dir_option(help="Keeps genes, addressed by the content of the file.")
@click.option("--sha256", metavar="HEX", help="Expected SHA-256 of the file.")
@format_option("genes", formats.GENES_FORMAT)
@step("genes", "genes", "statuses")
def genes(contigs: Path, prefix: Path, max_contig_bases: int, **options: Any) -> Any:
    """Find the genes of a FASTA file of contigs with pyrodigal-gv.

    The proteins that it writes are input of `split` with --input-type genes. pyrodigal-gv comes
    with `pip install 'virnucpro[contigs]'`; it is under the GPL, version 3.
    """
    from virnucpro.genes.find import genes_of_file
    from virnucpro.genes.receipt import GenesParameters

    parameters = GenesParameters(max_contig_bases)
    return genes_of_file(contigs, prefix, parameters=parameters, **options)
