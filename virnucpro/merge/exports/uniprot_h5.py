"""The export `uniprot-h5`: one dataset per record, named by its id.

This is how UniProt publishes per-protein embeddings. Ids that cannot name a dataset are refused,
see `virnucpro.formats.LIMITED_IDS`.
"""

from __future__ import annotations

from pathlib import Path

import h5py

from virnucpro.merge.exports.source import Export, blocks

__all__ = ["UNIPROT_H5"]


def _write(source: h5py.File, temporary: Path, _target: Path) -> None:
    with h5py.File(temporary, "w", locking="best-effort") as file:
        for obs, embeddings in blocks(source):
            for name, embedding in zip(obs["id"], embeddings, strict=True):
                file.create_dataset(name, data=embedding, track_times=False)


UNIPROT_H5 = Export(_write)
