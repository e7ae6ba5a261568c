"""Maps of the embeddings: each point is a protein; near points have similar embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from virnucpro.report.drawing import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SKY,
    WHOLE_NUMBERS,
    YELLOW,
    new_figure,
)
from virnucpro.report.projection import Projection

__all__ = ["map_by_length", "map_by_sample", "map_by_truncation"]

# Marker and colour: samples can be told apart in grey too.
_LOOKS = [
    (BLUE, "o"),
    (ORANGE, "^"),
    (GREEN, "s"),
    (PURPLE, "D"),
    (YELLOW, "v"),
    (SKY, "P"),
    (BLACK, "*"),
]
_LONGEST_NAME = 30
_LEGEND_LETTERS = 80

Points = npt.NDArray[np.float64]


def map_by_length(projection: Projection, notice: str | None, path: Path) -> None:
    """Colour the map by the proteins' lengths.

    Args:
        projection: what to draw.
        notice: a warning to print above it.
        path: the SVG to write.
    """
    lengths = np.maximum(projection.length, 1)
    low, high = int(lengths.min(initial=100)), int(lengths.max(initial=1000))
    norm = LogNorm(low, max(high, low + 1))
    with new_figure(path, 4.2) as figure:
        for axes, points in _panels(figure, projection, notice):
            drawn = axes.scatter(
                points[:, 0],
                points[:, 1],
                c=lengths,
                norm=norm,
                cmap="cividis",
                **_dots(len(points)),
            )
        bar = figure.colorbar(drawn, ax=figure.axes, label="Length (residues, log scale)")
        bar.ax.yaxis.set_major_formatter(WHOLE_NUMBERS)
        bar.ax.yaxis.set_minor_formatter(lambda _value, _position: "")
        inside = [tick for tick in _ticks() if low <= tick <= high]
        bar.set_ticks(inside or [low, max(high, low + 1)])
        if bar.solids is not None:
            bar.solids.set_rasterized(True)


def _ticks() -> list[int]:
    return [step * 10**power for power in range(6) for step in (1, 2, 5)]


def map_by_sample(
    projection: Projection, samples: Sequence[str], notice: str | None, path: Path
) -> None:
    """Colour the map by sample: the largest seven by themselves, the others together.

    Args:
        projection: what to draw.
        samples: the samples' names.
        notice: a warning to print above it.
        path: the SVG to write.
    """
    counts = np.bincount(projection.sample, minlength=len(samples))
    order = np.argsort(-counts, kind="stable")
    shown, others = sorted(order[: len(_LOOKS)].tolist()), order[len(_LOOKS) :]
    groups = [
        (_shorten(samples[number]), projection.sample == number, *look)
        for number, look in zip(shown, _LOOKS, strict=False)
    ]
    if len(others):
        together = np.isin(projection.sample, others)
        groups.insert(0, (f"{len(others):,} other samples", together, GREY, "."))
    with new_figure(path, 4.6) as figure:
        for axes, points in _panels(figure, projection, notice):
            _draw_groups(axes, points, groups)
        _legend(figure)


def map_by_truncation(projection: Projection, notice: str | None, path: Path) -> None:
    """Colour the map by whether residues were left out.

    Args:
        projection: what to draw.
        notice: a warning to print above it.
        path: the SVG to write.
    """
    cut = projection.truncated
    groups = [
        (f"Whole ({np.count_nonzero(~cut):,})", ~cut, SKY, "o"),
        (f"Truncated ({np.count_nonzero(cut):,})", cut, ORANGE, "^"),
    ]
    with new_figure(path, 4.6) as figure:
        for axes, points in _panels(figure, projection, notice):
            _draw_groups(axes, points, groups)
        _legend(figure)


def _panels(
    figure: Figure, projection: Projection, notice: str | None
) -> list[tuple[Axes, Points]]:
    """Make a panel for PCA and, where there is one, for UMAP."""
    both = projection.umap is not None
    axes = figure.subplots(1, 2 if both else 1, squeeze=False)[0]
    first, second = (f"({100 * share:.1f}% of variance)" for share in projection.explained)
    axes[0].set_xlabel(f"PC 1 {first}")
    axes[0].set_ylabel(f"PC 2 {second}")
    shown, rows = len(projection.pca), projection.rows
    which = f"{rows:,} embeddings" if shown == rows else f"{shown:,} of {rows:,} embeddings"
    axes[0].set_title(f"PCA\n{which}")
    panels = [(axes[0], projection.pca)]
    if projection.umap is not None:
        axes[1].set_title("UMAP\nof the first 50 components")
        axes[1].set_xlabel("UMAP 1 (no unit)")
        axes[1].set_ylabel("UMAP 2 (no unit)")
        panels.append((axes[1], projection.umap))
    if notice:
        figure.suptitle(notice, fontsize=9, color=ORANGE)
    for panel, _ in panels:
        panel.locator_params(nbins=5)
    return panels


def _dots(points: int) -> dict[str, Any]:
    """Return size and strokes of a point: the more there are, the smaller."""
    return {
        "s": float(np.clip(20_000 / max(points, 1), 2, 20)),
        "linewidths": 0,
        "rasterized": True,
    }


def _draw_groups(
    axes: Axes, points: Points, groups: Sequence[tuple[str, npt.NDArray[np.bool_], str, str]]
) -> None:
    """Draw groups of points, small groups last, so that they are not hidden."""
    for name, chosen, colour, marker in sorted(groups, key=lambda group: -group[1].sum()):
        look = _dots(min(len(points), 10 * int(chosen.sum())))
        axes.scatter(*points[chosen].T, color=colour, marker=marker, label=name, **look)


def _legend(figure: Figure) -> None:
    handles, names = figure.axes[0].get_legend_handles_labels()
    legend = figure.legend(
        handles,
        names,
        loc="outside lower center",
        ncols=max(1, _LEGEND_LETTERS // (max(map(len, names)) + 5)),
    )
    for handle in legend.legend_handles:
        if isinstance(handle, PathCollection):
            handle.set_sizes([30.0])


def _shorten(name: str) -> str:
    """Take out the middle of a long name: samples of one project often begin alike."""
    return name if len(name) <= _LONGEST_NAME else f"{name[:14]}…{name[-14:]}"
