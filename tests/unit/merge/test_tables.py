from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virnucpro.errors import DataError
from virnucpro.merge.tables import read_table, write_table

CELLS = st.text(st.characters(exclude_categories=["Cs"]))


@given(rows=st.lists(st.tuples(CELLS, CELLS)))
def test_any_cell_is_read_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]
) -> None:
    path = tmp_path_factory.mktemp("table") / "t.tsv"
    write_table(path, ("a", "b"), rows)
    assert [(row["a"], row["b"]) for row in read_table(path, ("a", "b"))] == rows


def test_cell_longer_than_the_csv_modules_default_limit_is_read(tmp_path: Path) -> None:
    path = tmp_path / "t.tsv"
    write_table(path, ("a",), [("x" * 200_000,)])
    assert next(read_table(path, ("a",)))["a"] == "x" * 200_000


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"has columns None, expected \['a', 'b'\]"),
        (b"a\tc\n", r"has columns \['a', 'c'\]"),
        (b"a\tb\n1\n", "line 2: has 1 cells, expected 2"),
        (b"a\tb\n1\t2\t3\n", "line 2: has 3 cells"),
        (b'a\tb\n"1\t2\n', "is damaged"),
        (b"a\tb\n\xff\t2\n", "is damaged"),
    ],
)
def test_damaged_table_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "t.tsv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(read_table(path, ("a", "b")))


def test_missing_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"t\.tsv: is missing"):
        list(read_table(tmp_path / "t.tsv", ("a",)))
