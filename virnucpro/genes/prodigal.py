"""The header lines of Prodigal, as Prodigal, pyrodigal and geNomad write them.

``>contig_3 # 130 # 1266 # -1 # ID=1_3;partial=00;start_type=ATG;...``: the contig's id and the
gene's number, first and last base, strand, and attributes. Prodigal itself does not say the genetic
code; geNomad does, and so does this package.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from virnucpro.errors import InputError
from virnucpro.sequences.fasta import Record
from virnucpro.sequences.gene import Gene

__all__ = ["format_header", "parse_header", "with_genes"]

_HEADER = re.compile(
    r"(?P<contig>[^ \t]+)_(?P<gene>[1-9][0-9]*)[ \t]+"
    r"# (?P<start>[1-9][0-9]*) # (?P<end>[1-9][0-9]*) # (?P<strand>-?1) # (?P<attributes>\S.*)",
    re.ASCII,
)
_PARTIAL = re.compile(r"(?:^|;)partial=([01][01])(?:;|$)", re.ASCII)
_GENETIC_CODE = re.compile(r"(?:^|;)(?:genetic_code|transl_table)=([0-9]{1,2})(?:;|$)", re.ASCII)
_HINT = (
    "a header of Prodigal reads '>contig_1 # 2 # 181 # -1 # ID=1_1;partial=00;...'; "
    "proteins with other headers are input_type: protein (--input-type protein)"
)


def parse_header(header: str) -> Gene | None:
    """Read a header line without its ">".

    Returns:
        The gene; None where the line is not Prodigal's: another form, no ``partial``, or an end
        before its start.
    """
    found = _HEADER.fullmatch(header)
    partial = found and _PARTIAL.search(found["attributes"])
    if not (found and partial) or int(found["end"]) < int(found["start"]):
        return None
    code = _GENETIC_CODE.search(found["attributes"])
    return Gene(
        contig=found["contig"],
        gene=int(found["gene"]),
        start=int(found["start"]),
        end=int(found["end"]),
        strand=int(found["strand"]),
        partial=partial[1],
        genetic_code=int(code[1]) if code else 0,
    )


def format_header(gene: Gene, contig_number: int, attributes: str) -> str:
    """Write a header line without its ">", as `parse_header` reads it.

    Args:
        gene: its contig's id has no space and no tab.
        contig_number: of the contig in its file, from 1.
        attributes: further ones, "name=value;" each.
    """
    return (
        f"{gene.contig}_{gene.gene} # {gene.start} # {gene.end} # {gene.strand} # "
        f"ID={contig_number}_{gene.gene};partial={gene.partial};{attributes}"
        f"genetic_code={gene.genetic_code}"
    )


def with_genes(records: Iterable[Record]) -> Iterator[Record]:
    """Add to each record of a FASTA file the gene that its header tells.

    Raises:
        InputError: a header is not Prodigal's; its line is named.
    """
    for record in records:
        gene = parse_header(f"{record.id} {record.description}".rstrip())
        if gene is None:
            raise InputError(
                f"the header of {record.id!r} is not one of Prodigal",
                path=record.path,
                line=record.line,
                hint=_HINT,
            )
        yield record._replace(gene=gene)
