r"""Derive the example input: the open reading frames of phage lambda, translated.

The genome is the file ``lambda_virus.fa`` of Debian's package ``bowtie2-examples`` (NCBI
NC_001416.1; plain, or gzip-compressed as Debian ships it):

    apt-get install bowtie2-examples
    python example/derive_lambda_proteins.py \
        /usr/share/doc/bowtie2/examples/reference/lambda_virus.fa.gz example/phage_lambda.faa

A reading frame here runs from the first ATG, GTG or TTG after a stop codon to the next stop codon,
on either strand, and gives at least 50 residues (genetic code 11; the first residue is M, as in
the cell). That is every candidate gene, not the annotated set: 48 kb give 266 proteins of 50 to
1,132 residues. Frames that touch an end of the sequence without a stop codon are left out.
"""

from __future__ import annotations

import argparse
import gzip
import io
from collections.abc import Iterable, Iterator
from pathlib import Path

from Bio import SeqIO
from Bio.Seq import Seq

STARTS = frozenset({"ATG", "GTG", "TTG"})
STOPS = frozenset({"TAA", "TAG", "TGA"})
SHORTEST = 50  # residues
LINE = 60  # residues a line


def read_genome(path: Path) -> str:
    """Read the one sequence of a FASTA file, plain or gzip-compressed, in upper case."""
    content = path.read_bytes()
    text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode()
    return str(SeqIO.read(io.StringIO(text), "fasta").seq).upper()


def open_reading_frames(strand: str) -> Iterator[tuple[int, int]]:
    """Give the reading frames of one strand.

    Args:
        strand: the strand's bases, 5' to 3'.

    Yields:
        (start, end): 0-based, end exclusive; from the start codon up to and with the stop codon.
    """
    for frame in range(3):
        start, closed = None, False
        for position in range(frame, len(strand) - 2, 3):
            codon = strand[position : position + 3]
            if codon in STOPS:
                if closed and start is not None:
                    yield start, position + 3
                start, closed = None, True
            elif start is None and codon in STARTS:
                start = position


def proteins(genome: str) -> Iterator[tuple[str, str]]:
    """Translate the reading frames of both strands.

    Yields:
        (id, residues) ordered by position: the id is ``lambda|start-end|strand`` with 1-based
        positions on the forward strand, stop codon included.
    """
    found = []
    for sign, strand in (("+", genome), ("-", str(Seq(genome).reverse_complement()))):
        for start, end in open_reading_frames(strand):
            residues = "M" + str(Seq(strand[start + 3 : end - 3]).translate(table=11))
            if len(residues) >= SHORTEST:
                first, last = (
                    (start, end) if sign == "+" else (len(genome) - end, len(genome) - start)
                )
                found.append((first + 1, last, sign, residues))
    for first, last, sign, residues in sorted(found):
        yield f"lambda|{first}-{last}|{sign}", residues


def write_fasta(records: Iterable[tuple[str, str]], path: Path) -> None:
    """Write (id, residues) as FASTA."""
    with path.open("w", encoding="ascii") as handle:
        for name, residues in records:
            lines = [residues[i : i + LINE] for i in range(0, len(residues), LINE)]
            handle.write("\n".join([f">{name}", *lines]) + "\n")


def main() -> None:
    """Write the proteins of GENOME to FASTA."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("genome", type=Path, help="lambda_virus.fa or lambda_virus.fa.gz")
    parser.add_argument("fasta", type=Path, help="the FASTA file to write")
    arguments = parser.parse_args()
    write_fasta(proteins(read_genome(arguments.genome)), arguments.fasta)


if __name__ == "__main__":
    main()
