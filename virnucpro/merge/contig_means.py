"""contigs.h5ad: the mean of a contig's embedded genes, in AnnData's on-disk format."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from virnucpro.merge.contigs import ContigCounts, iter_contigs
from virnucpro.merge.h5ad import STRING, H5adWriter
from virnucpro.merge.ledger import printable_id

__all__ = ["write_means"]

_COLUMNS: dict[str, Any] = {
    "_index": STRING,
    "contig": STRING,  # the id as it is in the file, as `obs` of embeddings.h5ad has it
    "file": STRING,
    "line": np.int64,
    "length": np.int64,
    "gc": np.float64,
    "n_fraction": np.float64,
    "genes": np.int32,
    "embedded": np.int32,
    "partial": np.int32,
    "coding_fraction": np.float64,
    "genetic_code": np.int16,
}
_BLOCK_BYTES = 64 << 20
_BLOCK_CONTIGS = 8192

FloatArray = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class _Block:
    """Some rows of `obs`."""

    rows: list[dict[str, Any]]
    id: list[str]

    def column(self, name: str) -> list[Any]:
        """Return a column by its name in the file."""
        if name == "_index":
            return self.id
        if name == "contig":
            return [printable_id(row["id"]) for row in self.rows]
        values = [row[name] for row in self.rows]
        return [np.nan if value is None else value for value in values]


def write_means(
    path: Path,
    h5ad: Path,
    counts: ContigCounts,
    *,
    sample: str,
    uns: dict[str, Any],
    request: str,
) -> None:
    """Write a row for each contig that has an embedded gene: the mean over those genes.

    Equal genes count as often as they are there. Sums are in float64, and those of a contig do not
    depend on the others.

    Args:
        path: the file to make; the caller moves it to its final name.
        h5ad: the finished embeddings.h5ad, whose rows are in the order of the contigs.
        counts: of the contigs.
        sample: the sample's name.
        uns: provenance.
        request: the id that the file is to carry.
    """
    sizes = counts.embedded[counts.embedded > 0]
    chosen = (row for row in iter_contigs(counts) if row["embedded"])
    with h5py.File(h5ad, "r") as source:
        layers = [int(layer) for layer in source["uns/virnucpro/layers"][()]]
        matrices = [source["X"], *(source[f"layers/layer_{layer}"] for layer in layers[1:])]
        dim, dtype = source["X"].shape[1], source["X"].dtype
        writer = H5adWriter(
            path,
            rows=len(sizes),
            dim=dim,
            dtype=dtype,
            layers=layers,
            sample=sample,
            uns={"virnucpro": uns},
            columns=_COLUMNS,
            request=request,
        )
        most = max(1, _BLOCK_BYTES // (dim * len(layers) * 8))
        names = _unique(counts)
        with writer:
            start = 0
            for group in _groups(sizes.tolist(), most):
                means = np.stack([_means(matrix, start, group, most) for matrix in matrices], 1)
                start += sum(group)
                rows = [next(chosen) for _ in group]
                writer.write(_Block(rows, [next(names) for _ in group]), means.astype(dtype))


def _groups(sizes: list[int], most: int) -> Iterator[list[int]]:
    """Cut contigs, given by their genes, into groups of at most `most` genes, or of one contig."""
    group: list[int] = []
    genes = 0
    for size in sizes:
        if group and (genes + size > most or len(group) >= _BLOCK_CONTIGS):
            yield group
            group, genes = [], 0
        group.append(size)
        genes += size
    if group:
        yield group


def _means(matrix: h5py.Dataset, start: int, sizes: list[int], most: int) -> FloatArray:
    """Return [contigs, dim] float64: the means of so many rows for each contig, from `start`."""
    if (size := sizes[0]) > most:  # a group of its own
        stops = [*range(start + most, start + size, most), start + size]
        total: FloatArray = np.zeros(matrix.shape[1])
        for first, stop in zip([start, *stops], stops, strict=False):
            total = total + matrix[first:stop].sum(axis=0, dtype=np.float64)
        return total[None] / np.float64(size)
    rows = matrix[start : start + sum(sizes)].astype(np.float64)
    begins = np.cumsum([0, *sizes[:-1]])
    totals: FloatArray = np.add.reduceat(rows, begins, axis=0)
    totals /= np.array(sizes)[:, None]
    return totals


def _unique(counts: ContigCounts) -> Iterator[str]:
    """Yield names of the contigs that have a row: their ids, numbered where one comes again."""
    taken = {printable_id(row["id"]) for row in iter_contigs(counts)}
    seen: dict[str, int] = {}
    for row in iter_contigs(counts):
        if not row["embedded"]:
            continue
        name = unnumbered = printable_id(row["id"])
        if unnumbered in seen:
            number = seen[unnumbered] + 1
            while f"{unnumbered}_{number}" in taken:
                number += 1
            seen[unnumbered], name = number, f"{unnumbered}_{number}"
        else:
            seen[unnumbered] = 1
        yield name
