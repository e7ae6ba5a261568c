"""A gene's place on its contig, which a record may carry, and the columns that tell it."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

__all__ = ["ANNOTATION_COLUMNS", "GENE_SCHEMA", "Gene"]


@dataclass(frozen=True, slots=True)
class Gene:
    """A gene on a contig; coordinates count from 1 along the contig, both ends inclusive."""

    contig: str  # id
    gene: int  # number on the contig, from 1
    start: int  # below `end`, but for a gene over the origin of a circular contig
    end: int
    strand: int  # 1 or -1; of the first part where parts lie on both
    partial: str  # whether `start` and `end` are unknown for they lie further out: "00" to "11"
    genetic_code: int  # NCBI's number of the translation table; 0 where the file doesn't say
    product: str = ""
    locus_tag: str = ""
    translation: str = ""  # "given", "made" of the nucleotides, "differs" from them, or not told


GENE_SCHEMA = pa.schema(
    [
        ("contig", pa.string()),
        ("gene", pa.int32()),
        ("start", pa.int64()),
        ("end", pa.int64()),
        ("strand", pa.int8()),
        ("partial", pa.string()),
        ("genetic_code", pa.int16()),
        ("product", pa.string()),
        ("locus_tag", pa.string()),
        ("translation", pa.string()),
    ]
)
"""The fields of `Gene` as columns of records.parquet."""

ANNOTATION_COLUMNS = ("product", "locus_tag", "translation")
"""Columns that only annotated files have."""
