from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from virnucpro.plan.parameters import PlanParameters
from virnucpro.report.figures import (
    duplicates,
    length_distribution,
    packing_by_shard,
    packing_efficiency,
    throughput,
)
from virnucpro.report.step_logs import StepLog

SHARES = {
    "planned": 1.0,
    "next_fit_decreasing": 0.9312,
    "sorted_padding": 1.0,
    "unsorted_padding": 0.0,
    "achieved": 0.97,
}
PARAMETERS = PlanParameters(4096, 1022)
LENGTHS = {
    "usual": ([30, 100, 300, 1022, 1023, 5000], [5, 900, 400, 9, 1, 2]),
    "one_residue": ([1], [1]),
    "all_cut": ([40_000], [12_345_678]),
    "wide": ([1, 100_000], [1, 3_000_000]),
}


def step_log(steps: int, memory: int = 5_000_000_000) -> StepLog:
    rng = np.random.default_rng(steps)
    seconds = rng.lognormal(-3, 0.1, steps)
    return StepLog(np.full(steps, 4096), seconds, np.full(steps, memory))


def shard_shares(count: int) -> list[dict[str, float]]:
    return [SHARES | {"planned": 0.999 + number / 1e6} for number in range(count)]


def copies(counts: dict[int, int], path: Path) -> None:
    duplicates(np.array([*counts]), np.array([*counts.values()]), 12_345, path)


DRAWINGS = {
    **{
        name: lambda path, data=data: length_distribution(
            np.array(data[0]), np.array(data[1]), PARAMETERS, path
        )
        for name, data in LENGTHS.items()
    },
    "efficiency": lambda path: packing_efficiency(SHARES, path),
    "one_shard": lambda path: packing_by_shard(shard_shares(1), path),
    "many_shards": lambda path: packing_by_shard(shard_shares(300), path),
    "no_duplicates": lambda path: copies({1: 266}, path),
    "duplicates": lambda path: copies({1: 9_000_000, 2: 400, 16: 5, 17: 1, 5000: 1}, path),
    "steps": lambda path: throughput([step_log(40), step_log(1), step_log(0)], path),
    "one_step": lambda path: throughput([step_log(1, memory=0)], path),
    "no_step": lambda path: throughput([step_log(0)], path),
    "many_steps": lambda path: throughput([step_log(3000), step_log(2000)], path),
    "many_shards_run": lambda path: throughput([step_log(9)] * 300, path),
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
    tmp_path: Path, name: str, drawn: list[Figure]
) -> None:
    DRAWINGS[name](tmp_path / "x.svg")
    figure = drawn[0]
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    axes = figure.axes[-1]
    texts = [text for one in figure.axes for text in one.texts]
    texts += [text for legend in figure.legends for text in legend.get_texts()]
    for one in figure.axes:
        assert one.yaxis.label.get_text() or one.get_yticklabels()
        texts += [one._left_title, one.xaxis.label, one.yaxis.label]
    assert axes.xaxis.label.get_text(), "an axis without a name"
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
    for one in figure.axes:
        for left, right in pairwise([text.get_window_extent() for text in one.texts]):
            assert not left.overlaps(right)


def test_whole_and_cut_records_never_share_a_bar(tmp_path: Path, drawn: list[Figure]) -> None:
    DRAWINGS["usual"](tmp_path / "x.svg")
    axes = drawn[0].axes[0]
    heights = {True: 0.0, False: 0.0}
    for bar in axes.patches:
        assert bar.get_x() >= 1023 or bar.get_x() + bar.get_width() <= 1023
        heights[bar.get_x() >= 1023] += bar.get_height()
    assert heights == {True: 3, False: 1314}
    assert "3 of 1,317 records (0.23%) exceed 1,022 residues" in axes.get_title(loc="left")


def test_long_runs_stay_small_files(tmp_path: Path) -> None:
    throughput([step_log(100_000)], tmp_path / "x.svg")
    assert (tmp_path / "x.svg").stat().st_size < 300_000


def test_drawing_leaves_the_settings_of_matplotlib_alone(tmp_path: Path) -> None:
    before = dict(mpl.rcParams)
    DRAWINGS["efficiency"](tmp_path / "x.svg")
    assert dict(mpl.rcParams) == before


def test_duplicates_are_counted_as_records_beyond_the_first(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    copies({1: 10, 2: 3, 20: 1}, tmp_path / "x.svg")
    axes = drawn[0].axes[0]
    # 10 + 6 + 20 records, of which 10 + 3 + 1 are the first of their sequence.
    assert axes.get_title(loc="left").startswith("22 of 36 records (61.11%) repeat a sequence")
    assert [text.get_text() for text in axes.texts] == ["10", "3", "0", "0", "0", "1"]
