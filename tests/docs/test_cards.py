"""docs/cards.md says nothing that was not compiled, run, measured or computed."""

import re
from pathlib import Path

import pytest

from virnucpro.model.backends import _TABLE
from virnucpro.model.devices import DTYPES
from virnucpro.report.rates import SHIPPED_RATES

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "cards.md").read_text()
COLUMNS = ("name", "capability", "backend", "dtypes", "compiled", "run", "tflops", "tbs", "rate")
TABLE = re.search(r"^\| card \|.*\n\|---.*\n((?:\|.*\n)+)", PAGE, re.MULTILINE)[1]
ROWS = [
    dict(zip(COLUMNS, map(str.strip, line.strip("|").split("|")), strict=True))
    for line in TABLE.splitlines()
]
H100 = next(row for row in ROWS if row["name"] == "H100 SXM")
RATE = SHIPPED_RATES["NVIDIA H100 80GB HBM3/esm2_t33_650M_UR50D/float16"]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["name"])
def test_every_rate_is_measured_or_computed_or_not_known(row):
    figure, _, kind = row["rate"].partition(" ")
    if kind == "expected":
        ratios = (float(row[key]) / float(H100[key]) for key in ("tflops", "tbs"))
        assert figure == f"{float(f'{RATE * min(ratios):.2g}'):,.0f}"
    elif row["rate"] == "not known":
        assert row["tflops"] == row["tbs"] == ""
    else:
        measured = re.search(r"\d+,\d+", row["rate"])[0]
        assert "measured" in row["rate"]
        assert measured in (ROOT / "benchmarks" / "RESULTS.md").read_text()


def test_the_cards_with_our_kernels_are_those_that_are_compiled_for():
    pytest.importorskip("triton")
    from tests.unit.model.kernels.cards import CARDS

    compiled = [row for row in ROWS if row["compiled"] == "yes"]
    assert {row["capability"]: "float8" in row["dtypes"] for row in compiled} == {
        card.name: card.float8 for card in CARDS
    }
    assert all((row["backend"] == "`tiles`") == (row in compiled) for row in ROWS)


def test_backends_and_dtypes_are_those_that_there_are():
    names = {row.name for row in _TABLE}
    assert {row["backend"].strip("`") for row in ROWS} <= names
    assert set(re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE)) == names
    assert {dtype for row in ROWS for dtype in row["dtypes"].split(", ")} == set(DTYPES)
