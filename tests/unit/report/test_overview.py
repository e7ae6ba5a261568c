from pathlib import Path

import pytest

from tests.unit.report.test_run import run
from tests.unit.samples import Sample, random_records
from virnucpro.errors import DataError, InputError
from virnucpro.files import read_json, write_json
from virnucpro.report import projection
from virnucpro.report.overview import overview


@pytest.fixture(autouse=True)
def without_umap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(projection.importlib.util, "find_spec", lambda _name: None)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Two finished samples."""
    for number, name in enumerate(("a", "b")):
        sample = Sample(tmp_path / name, random_records(30, seed=number))
        sample.merge()
        run(sample)
        (sample.root / "run.json").rename(sample.root / "packing_report.json")
    return tmp_path


def test_overview_of_all_samples_is_the_same_twice(results: Path) -> None:
    contents = []
    for number in range(2):
        folder = results / f"overview{number}"
        overview(results, ["a", "b"], report_dir=folder)
        contents.append({path.name: path.read_bytes() for path in sorted(folder.iterdir())})
    assert contents[0] == contents[1]
    assert list(contents[0]) == [
        *("map_by_length.svg", "map_by_sample.svg", "map_by_truncation.svg", "overview.html")
    ]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"format": 0}, InputError, "report has format 0"),
        ({"layers": [3]}, DataError, r"was embedded otherwise than a: layers is \[3\], not \[6\]"),
    ],
)
def test_samples_that_do_not_belong_together_are_refused(
    results: Path, change: dict[str, object], error: type[Exception], message: str
) -> None:
    path = results / "b" / "packing_report.json"
    report = read_json(path)
    write_json(path, report | change | {"model": report["model"] | change})
    with pytest.raises(error, match=message):
        overview(results, ["a", "b"], report_dir=results / "overview")
