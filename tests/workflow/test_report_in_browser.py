"""The report of a finished run, opened in a real browser without network, sheet by sheet.

`tests/workflow/install_browser.sh` installs what these tests need.
"""

import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.workflow.snakemake_runs import snakemake

INSTALL = "run tests/workflow/install_browser.sh"
sync_api = pytest.importorskip("playwright.sync_api", reason=f"no Playwright: {INSTALL}")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.workflow,
    pytest.mark.skipif(CHROMIUM is None, reason=f"no Chromium: {INSTALL}"),
]

SHEETS = [
    *("1 Summary", "2 Ledger of all records", "3 Lengths", "4 Duplicates", "5 Packing"),
    *("6 Packing by shard", "7 Throughput and memory", "8 Table of all shards"),
]
EXPECTED = {
    "All samples": ["1 Overview", "2 Map by length", "3 Map by sample", "4 Map by truncation"],
    "Sample awkward": SHEETS,
    "Sample lambda": SHEETS,
}
# Chromium runs as root in containers, which its sandbox does not allow; it is given no network.
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]


@pytest.fixture(scope="module", params=["report.html", "report.zip"])
def page(
    request: pytest.FixtureRequest, finished: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Any, list[str]]]:
    """Give the open report and the list into which its errors go."""
    path = tmp_path_factory.mktemp("report") / request.param
    run = snakemake(finished, "--report", str(path))
    assert run.status == 0, run.text
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            archive.extractall(path.parent)
        (path,) = path.parent.glob("*/report.html")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        context = browser.new_context(offline=True, viewport={"width": 1400, "height": 900})
        opened, errors = context.new_page(), []
        opened.on("console", lambda said: said.type == "error" and errors.append(said.text))
        opened.on("pageerror", lambda error: errors.append(str(error)))
        opened.on("requestfailed", lambda request: errors.append(request.url[:200]))
        opened.goto(path.as_uri())
        yield opened, errors
        browser.close()


@pytest.mark.parametrize("category", EXPECTED)
def test_every_sheet_shows_without_an_error(category: str, page: tuple[Any, list[str]]) -> None:
    opened, errors = page
    opened.reload()
    opened.get_by_role("link", name=category).click()
    opened.locator("tbody tr").first.wait_for()
    rows = opened.locator("tbody tr")
    found = [name.strip() for name in rows.locator("td:first-child").all_inner_texts()]
    assert found == EXPECTED[category]
    for number, sheet in enumerate(found):
        if sheet.startswith("8 "):
            continue  # a table to download
        rows.nth(number).locator("a[iconname=eye]").click()
        check_content(opened, sheet)
        rows.nth(number).locator("a[iconname=information-circle]").click()
        assert len(opened.locator(".prose").last.inner_text()) > 20, "no caption"
        opened.get_by_role("link", name=category).last.click()
        rows.first.wait_for()
    assert errors == []


def check_content(opened: Any, sheet: str) -> None:
    """Wait until the sheet's figure or page stands there, with something in it."""
    if sheet.endswith(("Summary", "records", "Overview")):
        heading = opened.frame_locator("iframe").locator("h1")
        heading.wait_for()
        assert heading.inner_text()
        assert opened.frame_locator("iframe").locator("td").count() > 5
        return
    image = opened.locator(".grow img")
    image.wait_for()
    opened.wait_for_function(
        "() => [...document.querySelectorAll('.grow img')].every(i => i.naturalWidth > 300)"
    )
