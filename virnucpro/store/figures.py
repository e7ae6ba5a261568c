"""The report's figures, as SVG whose bytes depend on the numbers only.

Colours are from the palette of Okabe and Ito (2008), which colour-blind readers can tell apart and
which differ in lightness, so they also print in grey.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from virnucpro.files import atomic_path
from virnucpro.store.summaries import Trace

__all__ = ["length_distribution", "packing_efficiency", "throughput"]

BLUE, ORANGE, GREEN, SKY, BLACK = "#0072B2", "#D55E00", "#009E73", "#56B4E9", "#000000"
_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "virnucpro",
    "svg.fonttype": "path",
    "font.family": "DejaVu Sans",  # comes with matplotlib, so it is the same everywhere
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "path.simplify": False,
}
_BINS = 60
_MANY_POINTS = 500


@contextmanager
def _figure(path: Path, height: float) -> Iterator[Axes]:
    """Give the axes of a new figure, 6.5 inches wide, and save it as SVG at the end."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(6.5, height), dpi=150, layout="constrained")
        yield figure.add_subplot()
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format="svg", metadata={"Date": None})


def length_distribution(
    lengths: npt.NDArray[np.int64],
    counts: npt.NDArray[np.int64],
    max_sequence_length: int,
    long_sequences: str,
    path: Path,
) -> None:
    """Draw how many records have which length, and the limit above which they are cut.

    Args:
        lengths: [k] distinct lengths in residues, rising; at least one.
        counts: [k] records of each length.
        max_sequence_length: residues.
        long_sequences: what is done above it, "truncate" or "window".
        path: the SVG to write.
    """
    low = max(1, int(lengths[0]) - 1)
    high = int(1.1 * max(lengths[-1], max_sequence_length)) + 2
    edges = np.unique(np.geomspace(low, high, _BINS + 1).round().astype(np.int64))
    # An edge at the limit, so that no bar holds both whole and cut records.
    edges = np.unique(np.append(edges, max_sequence_length + 1))
    heights, _ = np.histogram(lengths, bins=edges, weights=counts)
    longer = edges[:-1] > max_sequence_length
    cut, total = int(counts[lengths > max_sequence_length].sum()), int(counts.sum())
    # Labels at 1, 2 and 5 in each decade, while there is room for them.
    labelled = (1, 2, 5) if edges[-1] < 500 * edges[0] else (1,)
    with _figure(path, 3.4) as axes:
        for chosen, colour in ((~longer, BLUE), (longer, ORANGE)):
            axes.bar(
                edges[:-1][chosen],
                heights[chosen],
                width=np.diff(edges)[chosen],
                align="edge",
                color=colour,
                edgecolor="white",
                linewidth=0.4,
            )
        axes.axvline(max_sequence_length + 1, color=BLACK, linestyle="--", linewidth=1)
        fate = (
            f"only their first {max_sequence_length:,} residues are embedded"
            if long_sequences == "truncate"
            else "they are embedded in windows"
        )
        axes.set_title(
            f"{cut:,} of {total:,} records ({100 * cut / total:.2f}%) are longer than "
            f"{max_sequence_length:,} residues\n(right of the dashed line): {fate}",
            fontsize=10,
            loc="left",
        )
        axes.set_xscale("log")
        axes.set_xlim(edges[0], edges[-1])
        axes.xaxis.set_major_locator(LogLocator(subs=labelled))
        axes.xaxis.set_major_formatter(FuncFormatter(_whole))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("Length (residues, log scale)")
        axes.set_ylabel("Records")
        axes.yaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        axes.yaxis.set_major_formatter(FuncFormatter(_whole))
        axes.grid(axis="y", color="0.9")


def _whole(value: float, _position: int | None = None) -> str:
    return f"{value:,.0f}"


def packing_efficiency(totals: dict[str, Any], path: Path) -> None:
    """Draw the share of computed tokens that are real, for this plan and for other ways.

    Args:
        totals: as `summarise_plans` gives them.
        path: the SVG to write.
    """
    other = totals["alternatives"]
    bars = [
        ("First-fit decreasing\n(this plan)", totals["efficiency"], BLUE),
        ("Next-fit decreasing", other["next_fit_decreasing"]["efficiency"], SKY),
        ("Padding, sorted\nby length", other["sorted_padding"]["efficiency"], GREEN),
        ("Padding, unsorted", other["unsorted_padding"]["efficiency"], ORANGE),
    ]
    with _figure(path, 2.6) as axes:
        names, values, colours = zip(*bars, strict=True)
        percent = [100 * value for value in values]
        drawn = axes.barh(names, percent, color=colours, height=0.65)
        axes.bar_label(drawn, [f"{value:.2f}%" for value in percent], padding=4)
        axes.invert_yaxis()
        axes.set_xlim(0, 115)  # room for the labels beyond 100
        axes.set_xticks(range(0, 101, 20))
        axes.set_xlabel("Real tokens among computed tokens (%)")
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x", color="0.9")


def throughput(traces: Sequence[Trace], path: Path) -> None:
    """Draw the rate of each step along the run, shard after shard, and the overall rate.

    Args:
        traces: of all shards, in order.
        path: the SVG to write.
    """
    tokens = np.concatenate([trace.tokens for trace in traces])
    seconds = np.concatenate([trace.seconds for trace in traces])
    steps = np.arange(1, len(tokens) + 1)
    timed = seconds > 0
    with _figure(path, 3.2) as axes:
        axes.plot(
            steps[timed],
            tokens[timed] / seconds[timed],
            linestyle="none",
            marker=".",
            markersize=5 if len(steps) <= _MANY_POINTS else 3,
            color=BLUE,
            rasterized=len(steps) > _MANY_POINTS,
        )
        if timed.any():
            overall = tokens[timed].sum() / seconds[timed].sum()
            axes.axhline(overall, color=ORANGE, linewidth=1.5)
            axes.set_title(f"Overall {overall:,.0f} tokens/s (line)", fontsize=10, loc="left")
        for border in np.cumsum([len(trace.tokens) for trace in traces])[:-1]:
            axes.axvline(border + 0.5, color="0.8", linewidth=0.8, zorder=0)
        axes.set_ylim(bottom=0)
        axes.set_xlim(0.5, max(len(steps), 1) + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
        axes.yaxis.set_major_formatter(FuncFormatter(_whole))
        axes.set_xlabel("Step (shard after shard, divided by grey lines)")
        axes.set_ylabel("Throughput (tokens/s)")
        axes.grid(axis="y", color="0.9")
