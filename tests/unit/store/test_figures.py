from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from virnucpro.store.figures import length_distribution, packing_efficiency, throughput
from virnucpro.store.summaries import Trace

TOTALS = {
    "efficiency": 1.0,
    "alternatives": {
        "next_fit_decreasing": {"efficiency": 0.9312},
        "sorted_padding": {"efficiency": 1.0},
        "unsorted_padding": {"efficiency": 0.0},
    },
}
LENGTHS = {
    "usual": ([30, 100, 300, 1022, 1023, 5000], [5, 900, 400, 9, 1, 2]),
    "one_residue": ([1], [1]),
    "all_cut": ([40_000], [12_345_678]),
    "wide": ([1, 100_000], [1, 3_000_000]),
}


def trace(steps: int, name: str = "00000") -> Trace:
    rng = np.random.default_rng(steps)
    seconds = rng.lognormal(-3, 0.1, steps)
    return Trace(name, np.full(steps, 4096), seconds, np.zeros(steps, np.int64))


DRAWINGS = {
    **{
        name: lambda path, data=data: length_distribution(
            np.array(data[0]), np.array(data[1]), 1022, "truncate", path
        )
        for name, data in LENGTHS.items()
    },
    "efficiency": lambda path: packing_efficiency(TOTALS, path),
    "steps": lambda path: throughput([trace(40), trace(1, "00001"), trace(0, "00002")], path),
    "one_step": lambda path: throughput([trace(1)], path),
    "no_step": lambda path: throughput([trace(0)], path),
    "many_steps": lambda path: throughput([trace(3000), trace(2000, "00001")], path),
}


@pytest.mark.parametrize("name", DRAWINGS)
def test_same_numbers_give_the_same_bytes_without_a_date(tmp_path: Path, name: str) -> None:
    contents = []
    for number in range(2):
        DRAWINGS[name](tmp_path / f"{number}.svg")
        contents.append((tmp_path / f"{number}.svg").read_bytes())
    assert contents[0] == contents[1]
    assert ElementTree.fromstring(contents[0]).tag.endswith("svg")  # noqa: S314
    assert b"<dc:date>" not in contents[0]


@pytest.mark.parametrize("name", DRAWINGS)
def test_no_text_is_cut_off_and_no_tick_labels_overlap(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *a, **k: (figures.append(self), save(self, *a, **k))
    )
    DRAWINGS[name](tmp_path / "x.svg")
    figure = figures[0]
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    axes = figure.axes[0]
    texts = [*axes.texts, axes._left_title, axes.xaxis.label, axes.yaxis.label]
    for text in (text for text in texts if text.get_text()):
        box = text.get_window_extent()
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= figure.bbox.x1
        assert box.y1 <= figure.bbox.y1
    low, high = axes.get_xlim()
    boxes = [
        tick.label1.get_window_extent()
        for tick in axes.xaxis.get_major_ticks()
        if low <= tick.get_loc() <= high
    ]
    assert boxes, "an axis without numbers"
    for left, right in pairwise(boxes):
        assert left.x1 < right.x0


def test_whole_and_cut_records_never_share_a_bar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *a, **k: (figures.append(self), save(self, *a, **k))
    )
    DRAWINGS["usual"](tmp_path / "x.svg")
    axes = figures[0].axes[0]
    heights = {True: 0.0, False: 0.0}
    for bar in axes.patches:
        assert bar.get_x() >= 1023 or bar.get_x() + bar.get_width() <= 1023
        heights[bar.get_x() >= 1023] += bar.get_height()
    assert heights == {True: 3, False: 1314}
    assert "3 of 1,317 records (0.23%) are longer than 1,022" in axes.get_title(loc="left")


def test_long_runs_stay_small_files(tmp_path: Path) -> None:
    throughput([trace(100_000)], tmp_path / "x.svg")
    assert (tmp_path / "x.svg").stat().st_size < 300_000


def test_drawing_leaves_the_settings_of_matplotlib_alone(tmp_path: Path) -> None:
    before = dict(mpl.rcParams)
    DRAWINGS["efficiency"](tmp_path / "x.svg")
    assert dict(mpl.rcParams) == before
