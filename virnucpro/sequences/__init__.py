"""Sequences as users bring them and as the later steps see them.

`alphabet` normalises residues and names them by content, `compression` and `fasta` read files as
streams, `shards` holds the file format between the steps, `split` turns FASTA files into shards and
records (`spool`, `identifiers`, `staging` and `nucleotides` are its parts).
"""

from virnucpro.sequences.alphabet import RESIDUES, Normalised, normalise, sequence_key
from virnucpro.sequences.fasta import Record, read_fasta
from virnucpro.sequences.shards import ShardSequences, read_shard, write_shard

__all__ = [
    "RESIDUES",
    "Normalised",
    "Record",
    "ShardSequences",
    "normalise",
    "read_fasta",
    "read_shard",
    "sequence_key",
    "write_shard",
]
