from dataclasses import replace
from html.parser import HTMLParser

import pytest

from tests.unit.report.test_run import report_of
from tests.unit.samples import Sample
from virnucpro.merge.ledger import QuarantineRow
from virnucpro.quarantine import Reason
from virnucpro.report.content import RunReport
from virnucpro.report.pages import ledger_page, overview_page, summary_page


class Tables(HTMLParser):
    """Collects the cells of all tables, row by row, and every tag."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self._inside = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [str(value) for name, value in attrs if name in ("src", "href")]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self._inside = True

    def handle_endtag(self, tag: str) -> None:
        self._inside = self._inside and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.rows[-1][-1] += data

    def row(self, first: str) -> list[str]:
        return next(row for row in self.rows if row[0] == first)


@pytest.fixture
def report(sample: Sample) -> RunReport:
    sample.merge()
    return report_of(sample)


QUARANTINED = QuarantineRow(
    sample="s1",
    id="<script>alert(1)</script>",
    file="in/a&b.fasta",
    line="7",
    length="0",
    reason="empty",
    detail='says "no residues"',
)


def test_pages_stand_alone(report: RunReport) -> None:
    for page in (summary_page(report), ledger_page(report, []), overview_page([report])):
        found = Tables(page)
        assert "script" not in found.tags
        assert found.links == []
        assert "carry no biology" in page


def test_summary_has_the_numbers_of_the_report(report: RunReport) -> None:
    found = Tables(summary_page(report))
    assert found.row("Records read")[1] == "52"
    assert found.row("Model")[1] == "demo"
    assert found.row("Weights, SHA-256")[1] == "cd" * 32
    assert found.row("Full, as planned")[1] == f"{100 * report.planned.efficiency:.2f}%"
    assert found.row("a.fasta")[1:] == ["50", "ab" * 32]
    cost = 1e6 * report.measured.seconds / report.planned.residues
    assert cost >= 100
    assert found.row("Cost of a million residues")[1] == f"{cost:,.0f} device seconds"


def test_ledger_adds_up_to_the_records_that_were_read(report: RunReport) -> None:
    found = Tables(ledger_page(report, [QUARANTINED]))
    counts = [int(found.row(name)[1]) for name in ("Embedded", "Quarantined")]
    assert sum(counts) == int(found.row("Read from the input")[1]) == 52
    assert found.row("empty")[1] == "2"
    ledger = report.ledger
    assert found.row("Truncated")[1] == str(ledger.truncated)
    assert f"{ledger.residues_left_out:,} residues beyond 20" in found.row("Truncated")[3]


def test_every_reason_for_quarantine_is_explained(report: RunReport) -> None:
    counts = {str(reason): 1 for reason in Reason}
    report = replace(report, ledger=replace(report.ledger, quarantined_by_reason=counts))
    found = Tables(ledger_page(report, []))
    notes = [found.row(reason)[3] for reason in counts]
    assert all(notes)
    assert len(set(notes)) == len(counts)


def test_text_of_the_input_is_never_read_as_html(report: RunReport) -> None:
    page = ledger_page(report, [QUARANTINED])
    found = Tables(page)
    assert found.rows[-1] == list(QUARANTINED[1:])
    assert "<script>" not in page


def test_long_quarantines_are_cut_off_and_say_so(report: RunReport) -> None:
    report = replace(report, ledger=replace(report.ledger, quarantined=10_000))
    page = ledger_page(report, (QUARANTINED for _ in range(10_000)))
    assert page.count("alert(1)") == 200
    assert "The first 200 are listed." in page


def test_overview_has_a_row_a_sample(report: RunReport) -> None:
    found = Tables(overview_page([report, replace(report, sample="other")]))
    assert [row[0] for row in found.rows] == ["Sample", "s1", "other"]
    assert len({len(row) for row in found.rows}) == 1


@pytest.mark.parametrize(
    ("seconds", "text"), [(59.94, "59.9 s"), (61, "1 min 01 s"), (7260, "2 h 01 min")]
)
def test_times_are_written_for_people(report: RunReport, seconds: float, text: str) -> None:
    report = replace(report, measured=replace(report.measured, seconds=seconds))
    assert Tables(summary_page(report)).row("Time of the steps")[1] == text
