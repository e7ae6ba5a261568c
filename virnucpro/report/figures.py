"""The figures of one sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from virnucpro.plan.parameters import PlanParameters
from virnucpro.report.drawing import (
    BLACK,
    BLUE,
    GREEN,
    ORANGE,
    SKY,
    WHOLE_NUMBERS,
    YELLOW,
    new_figure,
)
from virnucpro.report.step_logs import StepLog

__all__ = [
    "duplicates",
    "length_distribution",
    "packing_by_shard",
    "packing_efficiency",
    "throughput",
]

_BINS = 60
_MANY_POINTS = 500
_MANY_SHARDS = 40
_PIECES = 200
_COPIES = (1, 2, 3, 5, 9, 17)
_GB = 1e9
_LEAST_PERCENT = 0.01

# How each way of making batches is drawn, here and in the figure shard by shard.
_WAYS = {
    "planned": ("First-fit decreasing,\nas planned", BLUE, "o"),
    "achieved": ("First-fit decreasing,\nas it ran", YELLOW, "x"),
    "next_fit_decreasing": ("Next-fit decreasing", SKY, "s"),
    "sorted_padding": ("Padding, sorted\nby length", GREEN, "^"),
    "unsorted_padding": ("Padding, unsorted", ORANGE, "v"),
}


def length_distribution(
    lengths: npt.NDArray[np.int64],
    counts: npt.NDArray[np.int64],
    parameters: PlanParameters,
    path: Path,
) -> None:
    """Draw how many records have which length, and the limit above which they are cut.

    Args:
        lengths: [k] distinct lengths in residues, increasing.
        counts: [k] records of each length.
        parameters: with the limit, and what is done above it.
        path: the SVG to write.
    """
    limit = parameters.max_sequence_length
    shortest, longest = (lengths[0], lengths[-1]) if len(lengths) else (1, limit)
    low = max(1, int(shortest) - 1)
    high = int(1.1 * max(longest, limit)) + 2
    edges = np.unique(np.geomspace(low, high, _BINS + 1).round().astype(np.int64))
    # An edge at the limit, so that no bar holds both whole and cut records.
    edges = np.unique(np.append(edges, limit + 1))
    heights, _ = np.histogram(lengths, bins=edges, weights=counts)
    longer = edges[:-1] > limit
    # Labels at 1, 2 and 5 in each decade, while there is room for them.
    labelled = (1, 2, 5) if edges[-1] < 500 * edges[0] else (1,)
    with new_figure(path, 3.4) as figure:
        axes = figure.add_subplot()
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
        axes.axvline(limit + 1, color=BLACK, linestyle="--", linewidth=1)
        axes.set_title(_title(int(counts[lengths > limit].sum()), int(counts.sum()), parameters))
        axes.set_xscale("log")
        axes.set_xlim(edges[0], edges[-1])
        axes.xaxis.set_major_locator(LogLocator(subs=labelled))
        axes.xaxis.set_major_formatter(WHOLE_NUMBERS)
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("Length (residues, log scale)")
        _count_axis(axes, "Records")


def _title(longer: int, total: int, parameters: PlanParameters) -> str:
    limit = f"{parameters.max_sequence_length:,}"
    fate = (
        f"only their first {limit} residues are embedded"
        if parameters.long_sequences == "truncate"
        else "they are embedded in windows"
    )
    share = f"{100 * longer / max(total, 1):.2f}%"
    return (
        f"{longer:,} of {total:,} records ({share}) exceed {limit} residues\n"
        f"(right of the line): {fate}"
    )


def _count_axis(axes: Axes, label: str) -> None:
    """Make the vertical axis one of whole numbers from 0."""
    axes.set_ylim(bottom=0)
    axes.set_ylabel(label)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
    axes.yaxis.set_major_formatter(WHOLE_NUMBERS)
    axes.grid(axis="y", color="0.9")


def packing_efficiency(shares: Mapping[str, float], path: Path) -> None:
    """Draw the share of computed tokens that are real: as planned, as it ran, and other ways.

    Args:
        shares: as `virnucpro.report.summaries.shares` gives them, and as ``achieved`` that of the
            steps that ran.
        path: the SVG to write.
    """
    with new_figure(path, 3.0) as figure:
        axes = figure.add_subplot()
        names = [name for name, _, _ in _WAYS.values()]
        colours = [colour for _, colour, _ in _WAYS.values()]
        percent = [100 * shares[way] for way in _WAYS]
        drawn = axes.barh(names, percent, color=colours, height=0.65)
        axes.bar_label(drawn, [f"{value:.2f}%" for value in percent], padding=4)
        axes.invert_yaxis()
        axes.set_xlim(0, 115)  # room for the labels beyond 100
        axes.set_xticks(range(0, 101, 20))
        axes.set_xlabel("Real tokens among computed tokens (%)")
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x", color="0.9")


def packing_by_shard(shards: Sequence[Mapping[str, float]], path: Path) -> None:
    """Draw what each shard lacks to 100%, on a log scale, where small differences show.

    Args:
        shards: of each, in order, what `packing_efficiency` takes.
        path: the SVG to write.
    """
    size = 6 if len(shards) <= _MANY_SHARDS else 3
    with new_figure(path, 3.8) as figure:
        axes = figure.add_subplot()
        for way, (name, colour, marker) in _WAYS.items():
            filled = np.array([shares[way] for shares in shards])
            lost = np.maximum(100 * (1 - filled), _LEAST_PERCENT)
            axes.plot(
                range(len(shards)),
                lost,
                linestyle="none",
                marker=marker,
                markersize=size,
                color=colour,
                label=name.replace("\n", " "),
                clip_on=False,  # a point at 0.01% stands on the edge
                zorder=3,
            )
        axes.set_yscale("log")
        axes.set_ylim(_LEAST_PERCENT, 100)
        axes.yaxis.set_major_formatter(lambda value, _position: f"{value:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_xlim(-0.5, len(shards) - 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
        axes.set_xlabel("Shard (number)")
        axes.set_ylabel("Not real among computed\ntokens (%, log scale)")
        axes.grid(axis="y", color="0.9")
        figure.legend(loc="outside upper left", ncols=2, handletextpad=0.3, columnspacing=1.5)


def duplicates(
    copies: npt.NDArray[np.int64], sequences: npt.NDArray[np.int64], saved: int, path: Path
) -> None:
    """Draw how many sequences occur in how many records, and what computing each once saved.

    Args:
        copies: [k] distinct numbers of records per sequence, increasing.
        sequences: [k] sequences that occur in that many records.
        saved: tokens that were not computed again.
        path: the SVG to write.
    """
    records, distinct = int((copies * sequences).sum()), int(sequences.sum())
    heights, _ = np.histogram(copies, bins=[*_COPIES, np.inf], weights=sequences)
    highest = [following - 1 for following in _COPIES[1:]]
    names = [
        f"{low}" if low == high else f"{low}–{high}"
        for low, high in zip(_COPIES, highest, strict=False)
    ]
    names.append(f"{_COPIES[-1]} or more")
    with new_figure(path, 3.2) as figure:
        axes = figure.add_subplot()
        drawn = axes.bar(range(len(names)), heights, color=[SKY, *[BLUE] * (len(names) - 1)])
        axes.bar_label(drawn, [f"{height:,.0f}" for height in heights], padding=2, fontsize=9)
        axes.set_title(
            f"{records - distinct:,} of {records:,} records "
            f"({100 * (records - distinct) / max(records, 1):.2f}%) repeat a sequence:\n"
            f"{saved:,} tokens were not computed again"
        )
        axes.set_xticks(range(len(names)), names)
        axes.set_xlabel("Records with the same sequence (number)")
        axes.margins(y=0.12)
        _count_axis(axes, "Distinct sequences")


def throughput(step_logs: Sequence[StepLog], path: Path) -> None:
    """Draw the rate of each step along the run, shard after shard, and the memory in use.

    Args:
        step_logs: of all shards, in order.
        path: the SVG to write.
    """
    tokens = np.concatenate([step_log.tokens for step_log in step_logs])
    seconds = np.concatenate([step_log.seconds for step_log in step_logs])
    memory = np.concatenate([step_log.peak_memory_bytes for step_log in step_logs])
    timed = seconds > 0
    rate = np.full(len(tokens), np.nan)
    rate[timed] = tokens[timed] / seconds[timed]
    memory = np.where(memory > 0, memory / _GB, np.nan)
    with new_figure(path, 4.6) as figure:
        above, below = figure.subplots(2, sharex=True, height_ratios=(3, 2))
        _points(above, rate, BLUE)
        if timed.any():
            overall = tokens[timed].sum() / seconds[timed].sum()
            above.axhline(overall, color=ORANGE, linewidth=1.5)
            above.set_title(f"Overall {overall:,.0f} tokens/s (line)")
        above.set_ylabel("Throughput (tokens/s)")
        above.yaxis.set_major_formatter(WHOLE_NUMBERS)
        _points(below, memory, GREEN)
        known = np.isfinite(memory).any()
        below.set_title(f"Peak {np.nanmax(memory):,.2f} GB" if known else "Not known here")
        below.set_ylabel("Peak memory (GB)")
        for axes in (above, below):
            axes.set_ylim(bottom=0, top=None if (timed.any() if axes is above else known) else 1)
            axes.grid(axis="y", color="0.9")
        borders = np.cumsum([len(step_log.tokens) for step_log in step_logs])[:-1] + 0.5
        if few := len(step_logs) <= _MANY_SHARDS:
            for axes in (above, below):
                axes.vlines(borders, 0, 1, "0.8", lw=0.8, transform=axes.get_xaxis_transform())
        below.set_xlim(0.5, max(len(tokens), 1) + 0.5)
        below.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
        below.xaxis.set_major_formatter(WHOLE_NUMBERS)
        divided = ", divided by grey lines" if few and len(step_logs) > 1 else ""
        below.set_xlabel(f"Step (number, shard after shard{divided})")


def _points(axes: Axes, values: npt.NDArray[np.float64], colour: str) -> None:
    """Draw one value per step; for many steps, rasterised points and a line of medians."""
    steps = np.arange(1, len(values) + 1)
    many = len(steps) > _MANY_POINTS
    size = 2 if many else 5
    axes.plot(steps, values, ".", color=colour, markersize=size, rasterized=many)
    if not many:
        return
    middles, medians = [], []
    for piece in np.array_split(np.flatnonzero(np.isfinite(values)), _PIECES):
        if len(piece):
            middles.append(piece.mean() + 1)
            medians.append(np.median(values[piece]))
    axes.plot(middles, medians, color=BLACK, linewidth=0.8)
