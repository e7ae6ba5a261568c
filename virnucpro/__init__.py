"""Packed ESM-2 embeddings of viral proteins.

The layers import downwards only: ``sequences`` (FASTA, records, shards), ``plan`` and ``data``
(packing), ``model`` (weights and the packed network), ``embed`` (a shard on a device), ``store``
(merge, report), ``cli``.
"""

__all__ = ["__version__"]

__version__ = "0.1.0"
