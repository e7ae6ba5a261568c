"""The export `fair-esm`: one .pt file per record, as fair-esm's ``scripts/extract.py`` writes it.

The files hold all layers; ids.tsv beside them names the file of each id.
"""

from __future__ import annotations

import hashlib
import logging
import os
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from virnucpro.merge.exports.source import Export, columns_of, obs_blocks
from virnucpro.merge.tables import write_table

__all__ = ["FAIR_ESM"]

logger = logging.getLogger(__name__)

_MANY_FILES = 10_000
_LONGEST_NAME = 200  # bytes; file systems take 255
#: What extract.py calls the vectors of each pooling; it has no largest values.
_VECTORS = {
    "mean": "mean_representations",
    "none": "mean_representations",
    "cls": "bos_representations",
}


def _write(source: h5py.File, temporary: Path, target: Path) -> None:
    """Write what ``scripts/extract.py`` of fair-esm writes with ``--include mean`` or ``bos``."""
    pooling = source["uns/virnucpro/pooling"].asstr()[()]
    records = len(source["X"])
    if records > _MANY_FILES:
        logger.warning(
            "%s: one file a protein, %s files; embeddings.h5ad and the export parquet hold the "
            "same in one",
            *(target, f"{records:,}"),
        )
    names = columns_of(source)
    layers = [int(layer) for layer in source["uns/virnucpro/layers"][()]]
    matrices = [source["X"], *(source[f"layers/layer_{layer}"] for layer in layers[1:])]

    ambiguous = _ambiguous(label for _, obs in obs_blocks(source) for label in _labels(obs))

    def rows() -> Iterator[tuple[Any, ...]]:
        for block, obs in obs_blocks(source):
            means = [matrix[block].astype(np.float32) for matrix in matrices]
            for index, label in enumerate(_labels(obs)):
                file = _file_name(label, plain=_fold(label) not in ambiguous)
                vectors = {layer: mean[index] for layer, mean in zip(layers, means, strict=True)}
                _save(temporary / file, label, _VECTORS[pooling], vectors)
                yield file, *(obs[column][index] for column in names)

    write_table(temporary / "ids.tsv", ("file", *names), rows())
    os.sync()  # once, for a flush a file would take hours


def _labels(obs: Mapping[str, Any]) -> Iterator[str]:
    """Yield the records' header lines. An id may end in white space that is not ASCII's."""
    for name, description in zip(obs["id"], obs["description"], strict=True):
        yield f"{name} {description}" if description else name


def _fold(label: str) -> str:
    """Return the same text for labels whose file names some file system would confuse.

    Those of macOS and Windows ignore case, and macOS how a letter with accents is written. A folder
    that is whole here has to stay so where it is copied to.
    """
    return unicodedata.normalize("NFD", unicodedata.normalize("NFD", label).upper().casefold())


def _ambiguous(labels: Iterator[str]) -> set[str]:
    """Return the folded texts that several labels share."""
    seen: set[str] = set()
    several: set[str] = set()
    for label in labels:
        folded = _fold(label)
        (several if folded in seen else seen).add(folded)
    return several


def _save(path: Path, label: str, name: str, vectors: dict[int, npt.NDArray[np.float32]]) -> None:
    import torch  # here, because a merge without this export has no use for it

    tensors = {layer: torch.from_numpy(vector.copy()) for layer, vector in vectors.items()}
    with path.open("xb") as handle:
        torch.save({"label": label, name: tensors}, handle)


def _file_name(label: str, *, plain: bool = True) -> str:
    """Name a file after the record's header line, as extract.py does, where that is safe.

    Elsewhere a hash takes part in the name, so that two labels never meet in one file.

    Args:
        label: the record's header line.
        plain: whether no other label could be taken for this one (see `_fold`).
    """
    name = label.encode("utf-8", "replace").decode()
    safe = name.isprintable() and not name.startswith(".") and "/" not in name
    if plain and safe and len(name.encode()) <= _LONGEST_NAME:
        return f"{name}.pt"
    kept = "".join(letter if letter.isalnum() or letter in "._-|" else "_" for letter in name)
    digest = hashlib.blake2b(label.encode("utf-8", "replace"), digest_size=8).hexdigest()
    return f"{kept.lstrip('.')[:40]}.{digest}.pt"


FAIR_ESM = Export(_write, directory=True, poolings=tuple(_VECTORS))
