"""What a file holds, told by its content: proteins, annotated genes, or contigs."""

from __future__ import annotations

import itertools
from pathlib import Path

from virnucpro.errors import InputError
from virnucpro.genes.genbank import is_genbank
from virnucpro.sequences.compression import name_of, open_blocks
from virnucpro.sequences.fasta import parse_fasta
from virnucpro.sequences.nucleotides import count_letters

__all__ = ["detect_input_type"]

_BLOCKS = 8  # 2 MiB: a contig may be longer than the letters that decide


def detect_input_type(path: Path) -> str | None:
    """Return the `input_type` of a file, by the first 2 MiB of its content.

    Proteins with the headers of Prodigal are proteins here: as such they are always read, whatever
    the other files are.

    Args:
        path: plain or compressed.

    Returns:
        "genes" for GenBank, "contigs" for FASTA of nucleotides, "protein" for other FASTA; None
        where the file does not tell: it has fewer than 50 letters, or is one that no step reads.
    """
    try:
        blocks = list(itertools.islice(open_blocks(path), _BLOCKS))
        if is_genbank(b"".join(blocks[:1])):
            return "genes"
        found = count_letters(parse_fasta(blocks, name_of(path)))
    except InputError:  # the first step refuses the file and says why, and the others go on
        return None
    if not found.are_enough:
        return None
    return "contigs" if found.are_nucleotides else "protein"
