"""Tables as self-contained HTML pages, without scripts, images or links."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

__all__ = ["Row", "page", "table"]

_LONG_TEXT = 70
_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #111; background: #fff; margin: 2em;
       max-width: 62em; }
h1 { font-size: 1.5em; } h2 { font-size: 1.15em; margin: 1.6em 0 0.4em; }
table { border-collapse: collapse; } .wide { overflow-x: auto; }
th, td { text-align: left; vertical-align: top; padding: 0.25em 1em 0.25em 0;
         border-bottom: 1px solid #ddd; white-space: nowrap; }
td.long { white-space: normal; overflow-wrap: anywhere; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
.notice { border-left: 4px solid #D55E00; padding: 0.5em 1em; background: #fff4ec; }
.note { color: #555; } td.inner { padding-left: 1.5em; }
"""

Cell = str | int | float
Row = Sequence[Cell]


def page(title: str, notice: str | None, *parts: str) -> str:
    """Make a page of lines of HTML, with a warning above them where there is one."""
    warning = [f'<p class="notice">{escape(notice)}</p>'] if notice else []
    lines = [
        "<!DOCTYPE html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{escape(title)}</h1>",
        *warning,
        *parts,
        "</body></html>\n",
    ]
    return "\n".join(lines)


def table(
    title: str,
    rows: Sequence[Row],
    note: str = "",
    *,
    header: Sequence[str] = (),
    totals: bool = False,
) -> list[str]:
    """Make a table under its title; nothing where there is no row.

    Args:
        title: the heading; empty for none.
        rows: the cells of each.
        note: a sentence between heading and table.
        header: the names of the columns; without them each row begins with its heading.
        totals: whether the first row is the sum of the others, which are then indented.
    """
    if not rows:
        return []
    lines = [f"<h2>{escape(title)}</h2>"] if title else []
    lines += [f'<p class="note">{escape(note)}</p>'] if note else []
    lines.append('<div class="wide"><table>')
    if header:
        cells = (
            f"<th{_class(value)}>{escape(name)}</th>"
            for name, value in zip(header, rows[0], strict=True)
        )
        lines.append(f"<tr>{''.join(cells)}</tr>")
    for number, row in enumerate(rows):
        inner = ' class="inner"' if totals and number else ""
        kind = inner or _class(row[0])
        first = f"<td{kind}>{escape(str(row[0]))}</td>" if header else _heading(row[0])
        rest = "".join(_cell(value, aligned=bool(header)) for value in row[1:])
        lines.append(f"<tr>{first}{rest}</tr>")
    return [*lines, "</table></div>"]


def _heading(value: Cell) -> str:
    return f"<th>{escape(str(value))}</th>"


def _cell(value: Cell, *, aligned: bool) -> str:
    text = f"{value:,}" if isinstance(value, int) else str(value)
    return f"<td{_class(value, aligned=aligned)}>{escape(text)}</td>"


def _class(value: Cell, *, aligned: bool = True) -> str:
    """Align numbers in columns, and let long texts (hashes, ids) break anywhere."""
    if aligned and (isinstance(value, int) or str(value).endswith("%")):
        return ' class="number"'
    return ' class="long"' if len(str(value)) > _LONG_TEXT else ""
