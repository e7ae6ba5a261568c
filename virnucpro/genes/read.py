"""Files of genes, told apart by their content: FASTA with Prodigal's headers, or GenBank."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

from virnucpro.genes.genbank import is_genbank, parse_genbank
from virnucpro.genes.prodigal import with_genes
from virnucpro.sequences.compression import Digest, name_of, open_blocks
from virnucpro.sequences.fasta import Record, parse_fasta

__all__ = ["read_genes"]


def read_genes(
    path: Path | str,
    *,
    max_record_residues: int | None = None,
    whole_header: bool = False,
    digest: Digest | None = None,
) -> Iterator[Record]:
    """Read the genes of one file, plain or compressed, in file order; see `read_fasta`.

    Args:
        path: FASTA with Prodigal's headers, or GenBank; "-" is standard input.
        max_record_residues: letters of a record that are kept.
        whole_header: whether the id is the whole header; in GenBank there is none.
        digest: takes the raw bytes of the file as they pass.

    Yields:
        Records with their genes.

    Raises:
        InputError: see `read_fasta`, `with_genes` and `parse_genbank`.
    """
    blocks, name = open_blocks(path, digest=digest), name_of(path)
    start = next(blocks, b"")
    blocks = itertools.chain([start] if start else [], blocks)
    if is_genbank(start):
        return parse_genbank(blocks, name, max_record_residues=max_record_residues)
    return with_genes(
        parse_fasta(
            blocks, name, max_record_residues=max_record_residues, whole_header=whole_header
        )
    )
