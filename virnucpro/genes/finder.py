"""Genes on contigs, found by pyrodigal-gv: the one module that imports it.

pyrodigal-gv is Prodigal with models of giant viruses and of phages with other genetic codes. It is
under the GPL, version 3, so it is an extra that users install themselves.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any
from urllib.parse import quote

from virnucpro.errors import InputError
from virnucpro.genes.prodigal import format_header
from virnucpro.sequences.gene import Gene

__all__ = ["FoundGenes", "find_genes", "finder_versions"]

_PROGRAMS = ("pyrodigal-gv", "pyrodigal")
_UNQUOTED = ".:^*$@!+_?-|"  # that an id in GFF3 may have beside letters and digits


@dataclass(frozen=True)
class FoundGenes:
    """The genes of one contig."""

    faa: bytes  # FASTA, two lines a gene, without the stops
    gff: bytes  # lines of GFF3
    genes: int
    partial: int  # genes that go on beyond the contig
    coding: int  # bases in at least one gene
    genetic_code: int  # 0 where there is no gene


def finder_versions() -> dict[str, str]:
    """Return the versions of the programs that decide which genes are found.

    Raises:
        InputError: they are not installed.
    """
    try:
        return {name: version(name) for name in _PROGRAMS}
    except PackageNotFoundError:
        raise InputError(
            "genes are found by pyrodigal-gv, which is not installed",
            hint="install it: pip install 'virnucpro[contigs]'. It is free software under the GNU "
            "General Public License, version 3, other than this package; or find the genes "
            "yourself, and give them as input_type: genes",
        ) from None


def find_genes(number: int, contig: str, bases: bytes) -> FoundGenes:
    """Find the genes of one contig, as ``pyrodigal_gv.ViralGeneFinder(meta=True)`` does.

    Args:
        number: of the contig in its file, from 1.
        contig: its id, without space or tab.
        bases: upper-case IUPAC letters, without U.
    """
    found = list(_finder().find_genes(bases))
    faa, gff, last, coding = [], [], 0, 0
    for index, each in enumerate(found, 1):
        gene = Gene(
            *(contig, index, each.begin, each.end, each.strand),
            partial=f"{each.partial_begin:d}{each.partial_end:d}",
            genetic_code=each.translation_table,
        )
        attributes = (
            f"start_type={each.start_type};rbs_motif={each.rbs_motif};"
            f"rbs_spacer={each.rbs_spacer};gc_cont={each.gc_cont:.3f};"
        )
        header = format_header(gene, number, attributes)
        faa.append(f">{header}\n{each.translate(include_stop=False)}\n")
        gff.append(_gff_line(gene, each.score, header.rpartition(" # ")[2]))
        coding += max(0, gene.end - max(last, gene.start - 1))
        last = max(last, gene.end)
    return FoundGenes(
        faa="".join(faa).encode(),
        gff="".join(gff).encode(),
        genes=len(found),
        partial=sum(each.partial_begin or each.partial_end for each in found),
        coding=coding,
        genetic_code=found[0].translation_table if found else 0,
    )


@functools.cache
def _finder() -> Any:
    import pyrodigal_gv

    return pyrodigal_gv.ViralGeneFinder(meta=True)


def _gff_line(gene: Gene, score: float, attributes: str) -> str:
    """Write a CDS as a line of GFF3, with the attributes of its header."""
    name = quote(gene.contig, safe=_UNQUOTED)
    strand = "+" if gene.strand > 0 else "-"
    cells = (name, "pyrodigal-gv", "CDS", gene.start, gene.end, f"{score:.1f}", strand, 0)
    return "\t".join(map(str, cells)) + f"\tName={name}_{gene.gene};{attributes}\n"
