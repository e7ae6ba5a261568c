from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from virnucpro.report.maps import map_by_length, map_by_sample, map_by_truncation
from virnucpro.report.projection import Projection


def projection(rows: int, samples: int = 1, *, umap: bool = False, cut: float = 0.1) -> Projection:
    rng = np.random.default_rng(rows)
    points = rng.normal(size=(rows, 2)) * [400, 90]
    return Projection(
        pca=points,
        explained=np.array([0.312, 0.041]),
        umap=points / 50 if umap else None,
        sample=np.arange(rows) % samples,
        length=rng.integers(21, 2794, rows),
        truncated=rng.random(rows) < cut,
        rows=350_000 if rows > 1000 else rows,
    )


def names(count: int) -> list[str]:
    return [f"a_sample_whose_name_is_as_long_as_they_sometimes_are_{i}" for i in range(count)]


CASES = {
    "one_row": projection(1),
    "no_row": projection(0),
    "umap": projection(300, 3, umap=True),
    "many_samples": projection(5000, 40, umap=True),
    "all_cut": projection(30, 2, cut=2.0),
}
DRAWINGS: dict[str, Callable[[Projection, str | None, Path], None]] = {
    "length": map_by_length,
    "sample": lambda found, notice, path: map_by_sample(
        found, names(int(found.sample.max(initial=0)) + 1), notice, path
    ),
    "truncation": map_by_truncation,
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("drawing", DRAWINGS)
def test_same_points_give_the_same_bytes_and_nothing_is_cut_off(
    case: str, drawing: str, tmp_path: Path, drawn: list[Figure]
) -> None:
    notice = "demo model: its weights are random, so this map carries no biology"
    for number in range(2):
        DRAWINGS[drawing](CASES[case], notice, tmp_path / f"{number}.svg")
    content = (tmp_path / "0.svg").read_bytes()
    assert content == (tmp_path / "1.svg").read_bytes()
    assert b"<dc:date>" not in content
    figure = drawn[0]
    FigureCanvasAgg(figure).draw()
    texts = [text for legend in figure.legends for text in legend.get_texts()]
    for axes in figure.axes:
        texts += [axes._left_title, axes.xaxis.label, axes.yaxis.label]
    boxes = [text.get_window_extent() for text in texts if text.get_text()]
    for box in boxes:
        assert figure.bbox.x0 <= box.x0
        assert box.x1 <= figure.bbox.x1
        assert figure.bbox.y0 <= box.y0
        assert box.y1 <= figure.bbox.y1
    for index, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:index])


def test_many_points_stay_a_small_file(tmp_path: Path) -> None:
    map_by_length(projection(50_000, umap=True), None, tmp_path / "x.svg")
    assert (tmp_path / "x.svg").stat().st_size < 2_000_000


def test_largest_samples_have_a_look_of_their_own_and_the_others_share_one(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    found = projection(1000, 9)
    map_by_sample(found, [f"s{number}" for number in range(9)], None, tmp_path / "x.svg")
    labels = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert sorted(labels) == sorted([*(f"s{number}" for number in range(7)), "2 other samples"])
    looks = {
        (tuple(drawn.get_facecolor()[0]), drawn.get_paths()[0].vertices.tobytes())
        for drawn in drawn[0].axes[0].collections
    }
    assert len(looks) == 8
    drawn = sum(len(points.get_offsets()) for points in drawn[0].axes[0].collections)
    assert drawn == 1000
