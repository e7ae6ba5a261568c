"""Tab-separated tables that the csv module reads back, whatever a cell holds."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from virnucpro.errors import DataError

__all__ = ["read_table", "write_table"]


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Iterable[Any]]) -> None:
    """Write a table with a header line; the same rows give the same bytes.

    Args:
        path: the file to write; the caller moves it to its final name.
        columns: the header.
        rows: the cells of each row, in the order of the columns; None is an empty cell.
    """
    with path.open("w", encoding="utf-8", newline="") as handle:
        minimal = csv.writer(handle, delimiter="\t", lineterminator="\n")
        # The csv module quotes a line feed but not a carriage return, and then cannot read it.
        quoted = csv.writer(handle, delimiter="\t", lineterminator="\n", quoting=csv.QUOTE_ALL)
        minimal.writerow(columns)
        for row in rows:
            cells = list(row)
            risky = any(isinstance(cell, str) and "\r" in cell for cell in cells)
            (quoted if risky else minimal).writerow(cells)


def read_table(path: Path, columns: Sequence[str]) -> Iterator[dict[str, str]]:
    """Read a table row by row.

    Raises:
        DataError: the file is missing or damaged, or has other columns.
    """
    csv.field_size_limit(1 << 30)  # an id may be longer than the default of 131,072 characters
    try:
        with path.open(encoding="utf-8", newline="") as handle:
            reader = csv.reader(handle, delimiter="\t", strict=True)
            header = next(reader, None)
            if header != list(columns):
                raise DataError(f"has columns {header}, expected {list(columns)}", path=path)
            for row in reader:
                if len(row) != len(columns):
                    raise DataError(
                        f"has {len(row)} cells, expected {len(columns)}",
                        path=path,
                        line=reader.line_num,
                    )
                yield dict(zip(columns, row, strict=True))
    except FileNotFoundError:
        raise DataError("is missing", path=path) from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"is damaged ({error})", path=path) from error
