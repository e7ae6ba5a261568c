"""Contigs with genes in them, made up from a seed."""

from __future__ import annotations

import random

STOPS = ("TAA", "TAG", "TGA")
_OTHER = str.maketrans("ACGT", "TGCA")


def gene(codons: int, rng: random.Random) -> str:
    """An open frame behind a ribosome's binding site."""
    letters = []
    while len(letters) < codons:
        codon = "".join(rng.choices("ACGT", (0.32, 0.2, 0.27, 0.21), k=3))
        if codon not in STOPS:
            letters.append(codon)
    return "AGGAGGTAACAT" + "ATG" + "".join(letters) + rng.choice(STOPS)


def genome(genes: int, seed: int) -> str:
    """A contig with genes on both strands; at its ends they are cut."""
    rng = random.Random(seed)
    parts = []
    for _ in range(genes):
        each = gene(rng.randint(80, 250), rng)
        parts.append(each if rng.random() < 0.5 else each[::-1].translate(_OTHER))
    return "".join(parts)[60:-60]


def fasta(contigs: dict[str, str]) -> str:
    return "".join(f">{name} text\n{bases}\n" for name, bases in contigs.items())
