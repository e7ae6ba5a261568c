"""Every fault has a test, and docs/faults.md says which."""

from tests.faults.table import FAULTS, ROOT, ROW, TABLE, column, held, written


def test_every_fault_has_a_test():
    assert sorted(held()) == list(FAULTS)


def test_the_table_names_the_tests_there_are():
    assert {number: tests for number, (_, tests) in written().items()} == {
        number: column(tests) for number, tests in held().items()
    }, "run `python -m tests.faults.table`"


def test_every_row_promises_something():
    assert list(written()) == list(FAULTS)
    assert all(len(promise) > 20 for promise, _ in written().values())


def test_the_rows_are_one_table_and_the_readme_counts_them():
    lines = TABLE.read_text().splitlines()
    rows = [number for number, line in enumerate(lines) if ROW.match(line)]
    assert rows == list(range(rows[0], rows[0] + len(FAULTS)))
    assert f"[{len(FAULTS)} failure modes](docs/faults.md)" in (ROOT / "README.md").read_text()
