"""Embeddings in two dimensions: PCA, and UMAP where it is installed.

A sample of the rows is taken, the same for the same files. The matrices are mapped and read in
blocks: memory is one block, a covariance [dim, dim], and for UMAP 50 numbers a row.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

__all__ = ["Projection", "project"]

logger = logging.getLogger(__name__)

_ROWS = 50_000
_BLOCK = 4096
_UMAP_COMPONENTS = 50
_SEED = 0
_SIGNIFICANT = 4  # decimals of a standard deviation, so that a sum's last bits move no point


@dataclass(frozen=True)
class Projection:
    """Sampled rows in two dimensions, in a seeded random order."""

    pca: npt.NDArray[np.float64]  # [n, 2] on the first two principal components
    explained: npt.NDArray[np.float64]  # [2] the components' share of the variance
    umap: npt.NDArray[np.float64] | None  # [n, 2]; None without umap-learn or with too few rows
    sample: npt.NDArray[np.int64]  # [n] numbers of the rows' samples
    length: npt.NDArray[np.int64]  # [n] residues
    truncated: npt.NDArray[np.bool_]  # [n]
    rows: int  # that the sampled ones were taken from


@dataclass(frozen=True)
class _Part:
    """The sampled rows of one file: the mapped matrix, and which of its rows."""

    matrix: npt.NDArray[np.floating[Any]]
    rows: npt.NDArray[np.int64]
    length: npt.NDArray[np.int64]
    truncated: npt.NDArray[np.bool_]


def project(files: Sequence[Path], rows: int = _ROWS) -> Projection:
    """Project a sample of the embeddings of several files, all of one model.

    Args:
        files: embeddings.h5ad, one a sample.
        rows: most rows that are drawn, over all files.

    Returns:
        The sample, projected.
    """
    generator = np.random.default_rng(_SEED)
    sizes = [_rows_of(path) for path in files]
    total = sum(sizes)
    chosen = generator.choice(total, min(rows, total), replace=False, shuffle=False)
    chosen.sort()
    starts = np.cumsum([0, *sizes])
    parts = []
    for path, low, high in zip(files, starts[:-1], starts[1:], strict=True):
        inside = chosen[np.searchsorted(chosen, low) : np.searchsorted(chosen, high)]
        parts.append(_open_part(path, inside - low))
    components, explained, mean = _principal_components(parts)
    scores = _round(np.concatenate([(block - mean) @ components for block in _blocks(parts)]))
    order = generator.permutation(len(chosen))
    sample = np.repeat(np.arange(len(parts)), [len(part.rows) for part in parts])
    embedded = _umap(scores)
    return Projection(
        pca=scores[order, :2],
        explained=explained[:2],
        umap=None if embedded is None else embedded[order],
        sample=sample[order],
        length=np.concatenate([part.length for part in parts])[order],
        truncated=np.concatenate([part.truncated for part in parts])[order],
        rows=total,
    )


def _rows_of(path: Path) -> int:
    with h5py.File(path, "r") as file:
        return len(file["X"])


def _open_part(path: Path, rows: npt.NDArray[np.int64]) -> _Part:
    """Map a file's matrix: h5py reads scattered rows a thousand times slower."""
    with h5py.File(path, "r") as file:
        matrix = file["X"]
        offset = matrix.id.get_offset()
        mapped = (
            matrix[:]
            if offset is None  # no rows
            else np.memmap(path, matrix.dtype, mode="r", offset=offset, shape=matrix.shape)
        )
        length, truncated = file["obs/length"][:][rows], file["obs/truncated"][:][rows]
    return _Part(mapped, rows, length.astype(np.int64), truncated.astype(np.bool_))


def _blocks(parts: Sequence[_Part]) -> Iterator[npt.NDArray[np.float64]]:
    yield np.empty((0, parts[0].matrix.shape[1]))
    for part in parts:
        for start in range(0, len(part.rows), _BLOCK):
            yield part.matrix[part.rows[start : start + _BLOCK]].astype(np.float64)


def _principal_components(
    parts: Sequence[_Part],
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the components, [dim, k], their shares of the variance, [k], and the mean, [dim].

    The rows are read once. They are taken from a point near their mean, that of the first block:
    squares of the rows themselves would lose digits where the mean is far from 0.
    """
    dim = parts[0].matrix.shape[1]
    near, total, covariance, rows = None, np.zeros(dim), np.zeros((dim, dim)), 0
    for block in _blocks(parts):
        if near is None and len(block):
            near = block.mean(axis=0)
        if near is not None:
            block -= near
            total += block.sum(axis=0)
            covariance += block.T @ block
            rows += len(block)
    shift = total / max(rows, 1)
    covariance -= rows * np.outer(shift, shift)
    mean = shift if near is None else near + shift
    values, vectors = np.linalg.eigh(covariance)
    values, vectors = np.maximum(values[::-1], 0), vectors[:, ::-1][:, :_UMAP_COMPONENTS]
    # Eigenvectors have no sign of their own: the largest entry is made positive.
    largest = np.abs(vectors).argmax(axis=0)
    vectors = vectors * np.sign(vectors[largest, np.arange(vectors.shape[1])])
    return vectors, values[: vectors.shape[1]] / max(values.sum(), np.finfo(float).tiny), mean


def _round(scores: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    spread = scores[:, 0].std() if len(scores) else 0.0
    if not spread > 0:
        return scores
    decimals = _SIGNIFICANT - int(np.floor(np.log10(spread)))
    return np.asarray(scores.round(decimals))


def _umap(scores: npt.NDArray[np.float64]) -> npt.NDArray[np.float64] | None:
    """Run UMAP on the principal components, if it is installed."""
    neighbours = 15
    found = importlib.util.find_spec("umap")
    if found is None or found.origin is None:  # a folder that pip left behind is no package
        logger.info("no UMAP: umap-learn is not installed (pip install 'virnucpro[umap]')")
        return None
    if len(scores) <= neighbours:
        logger.info("no UMAP: %d embeddings are too few", len(scores))
        return None
    umap = importlib.import_module("umap")
    # One thread, because UMAP is only reproducible on one.
    reducer = umap.UMAP(n_neighbors=neighbours, random_state=_SEED, n_jobs=1)
    return np.asarray(reducer.fit_transform(scores), dtype=np.float64)
