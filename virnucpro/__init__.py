"""Packed ESM-2 embeddings of viral proteins.

The packages follow the data, and import only what stands before them: ``sequences`` (FASTA,
records, shards), ``plan`` and ``data`` (packing), ``model`` (weights and the packed network),
``embed`` (a shard on a device), ``merge`` (embeddings.h5ad, exports), ``report`` (tables, pages,
figures), ``cli``.
"""

__all__ = ["__version__"]

__version__ = "0.1.0"
