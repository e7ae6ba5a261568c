"""Other formats of the merged embeddings, streamed from the finished embeddings.h5ad.

A format is a module here, which ends with an `Export`, and an entry of `EXPORTS`. An export carries
the first configured layer; `fair-esm` carries all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import h5py

from virnucpro.errors import InputError
from virnucpro.files import atomic_directory, atomic_path
from virnucpro.formats import LIMITED_IDS
from virnucpro.merge.exports.fair_esm import FAIR_ESM
from virnucpro.merge.exports.npy import NPY
from virnucpro.merge.exports.parquet import PARQUET
from virnucpro.merge.exports.uniprot_h5 import UNIPROT_H5

__all__ = ["EXPORTS", "check_exports", "check_poolings", "export"]

_EXAMPLES = 10  # ids that a message names

EXPORTS = {
    "parquet": PARQUET,
    "npy": NPY,
    "uniprot-h5": UNIPROT_H5,
    "fair-esm": FAIR_ESM,
}


def check_exports(exports: Mapping[str, Path], ids: Callable[[], Iterable[str]]) -> None:
    """Check, before anything is written, that the exports can be made.

    Args:
        exports: kind -> file.
        ids: gives the ids of all records; called for each export that limits them.

    Raises:
        InputError: an unknown kind, a file of another suffix, or ids that the export cannot have.
    """
    for kind, target in exports.items():
        if kind not in EXPORTS:
            raise InputError(
                f"unknown export {kind!r}", path=target, hint=f"one of {', '.join(EXPORTS)}"
            )
        suffix = EXPORTS[kind].suffix
        if suffix is not None and target.suffix != suffix:
            raise InputError(f"the export {kind} needs a name that ends in {suffix}", path=target)
        if kind in LIMITED_IDS:
            _check_ids(kind, target, ids())


def _check_ids(kind: str, target: Path, ids: Iterable[str]) -> None:
    unfit = [text for text in ids if not LIMITED_IDS[kind](text)]
    if unfit:
        listed = ", ".join(map(repr, unfit[:_EXAMPLES]))
        raise InputError(
            f"the export {kind} cannot have {len(unfit)} of the ids: {listed}"
            f"{', ...' if len(unfit) > _EXAMPLES else ''}",
            path=target,
            hint=f"leave out the export {kind}, or rename these records",
        )


def check_poolings(exports: Mapping[str, Path], pooling: str) -> None:
    """Check that the exports can hold vectors of a pooling.

    Raises:
        InputError: one cannot.
    """
    for kind, target in exports.items():
        poolings = EXPORTS[kind].poolings
        if poolings is not None and pooling not in poolings:
            raise InputError(
                f"the export {kind} cannot hold vectors of pooling {pooling}",
                path=target,
                hint=f"leave out the export {kind}, or pool by {' or '.join(poolings)}",
            )


def export(kind: str, h5ad: Path, target: Path) -> None:
    """Write one export.

    Args:
        kind: one of `EXPORTS`.
        h5ad: the finished embeddings.h5ad.
        target: the file or folder to write.

    Raises:
        OSError: writing failed.
    """
    place = atomic_directory if EXPORTS[kind].directory else atomic_path
    with h5py.File(h5ad, "r") as source, place(target) as temporary:
        EXPORTS[kind].write(source, temporary, target)
