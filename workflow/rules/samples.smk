"""Reads and checks the sample sheet: every mistake in it is one sentence that says where it is.

Only the standard library: an installation of Snakemake alone has no pandas.
"""

import csv
import os
import re
import stat
import unicodedata
from collections import namedtuple

from snakemake.exceptions import WorkflowError
from snakemake.utils import validate

COLUMNS = ("sample", "fasta")
EXPECTED_COLUMNS = (
    "expected a header line with the columns sample and fasta, separated by a tab, a comma or a "
    "semicolon"
)
SAMPLE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
LONGEST_SAMPLE_NAME = 100
# What Snakemake reads as wildcards, and control characters.
UNFIT_FOR_PATHS = re.compile(r"[{}\x00-\x1f\x7f-\x9f]")
# Spaces that spreadsheets and web pages leave around a cell; str.strip would take control
# characters too, which are to be refused.
BLANKS = " \t\u00a0\u1680\u200b\u202f\u205f\u3000\ufeff" + "".join(
    map(chr, range(0x2000, 0x200B))
)
# First bytes of files that are given in place of a sheet: what they are, and what to do.
NOT_TEXT = {
    b"PK\x03\x04": "a spreadsheet or another zip archive: export it as tab-separated text",
    b"\xd0\xcf\x11\xe0": "an old Excel file: export it as tab-separated text",
    b"\x1f\x8b": "compressed with gzip: uncompress it",
    b"BZh": "compressed with bzip2: uncompress it",
    b"\xfd7zXZ": "compressed with xz: uncompress it",
    b"\x28\xb5\x2f\xfd": "compressed with zstd: uncompress it",
}
# A larger file is not a sheet but the data, given in its place; it is not read into memory.
LARGEST_SHEET = 64 << 20
# Unusable FASTA files that are listed one by one.
LISTED_FILES = 1000

# One row: the sheet and the line that it stands on, a sample and one FASTA file of it.
Row = namedtuple("Row", ["sheet", "line", "sample", "fasta"])


def read_samples(sheet):
    """Return {sample: [FASTA, ...]} of a sheet; raise WorkflowError where it is not one."""
    return group_rows(read_rows(sheet))


def group_rows(rows):
    """Return {sample: [FASTA, ...]}; the files of a sample are read one after the other."""
    samples = {}
    for row in rows:
        samples.setdefault(row.sample, []).append(row.fasta)
    return samples


def read_rows(sheet):
    """Return the rows of a sheet, checked; whether the files exist is asked by `check_fastas`.

    Raises:
        WorkflowError: one sentence with the file, line and column, and what was expected.
    """
    header, columns, delimiter, lines = read_header(sheet)
    cells_of = [
        (line, split_line(sheet, line, text, delimiter)) for line, text in lines
    ]
    rows = [
        read_row(sheet, line, cells, columns) for line, cells in cells_of if any(cells)
    ]
    if not rows:
        raise refused(
            sheet,
            header,
            "has no rows below its header: expected a row for each FASTA file",
        )
    check_sample_spellings(rows)
    check_repeated_files(rows)
    # The schema is the documented contract. Its messages are long; the sentences above come first.
    contents = {
        f"line {row.line}": {"sample": row.sample, "fasta": row.fasta} for row in rows
    }
    validate({"rows": contents}, "../schemas/samples.schema.yaml")
    return rows


def check_fastas(rows):
    """Refuse FASTA files that cannot be read, all at once.

    Args:
        rows: of `read_rows`.

    Raises:
        WorkflowError: one sentence with every such file, its line, and what is wrong with it.
    """
    troubles = [(row, file_trouble(row.fasta)) for row in rows]
    bad = [f"line {row.line}: {row.fasta} {what}" for row, what in troubles if what]
    if not bad:
        return
    listed = "\n  ".join(bad[:LISTED_FILES])
    more = f"\n  and {len(bad) - LISTED_FILES} more" if len(bad) > LISTED_FILES else ""
    unexpanded = any(row.fasta.startswith("~") or "$" in row.fasta for row in rows)
    raise WorkflowError(
        f"{rows[0].sheet}, column fasta: {len(bad)} of {len(rows)} FASTA files cannot be read:\n"
        f"  {listed}{more}\n"
        f"relative paths count from the working directory, {os.getcwd()}"
        + ("; ~ and $VARIABLES stay as they are" if unexpanded else "")
    )


# ---- the file -----------------------------------------------------------------------------------


def refused(sheet, line, what, column=None):
    """Return the error for a place in the sheet."""
    place = f"{sheet}, line {line}" + (f", column {column}" if column else "")
    return WorkflowError(f"{place}: {what}")


def read_text(sheet):
    """Return the sheet's text: UTF-8, or UTF-16 with a byte order mark (Excel's "Unicode text")."""
    try:
        with open(sheet, "rb") as handle:
            content = handle.read(LARGEST_SHEET + 1)
    except (OSError, ValueError) as error:
        raise WorkflowError(
            f"cannot read the sample sheet {sheet} (config: samples): "
            f"{getattr(error, 'strerror', None) or error}; it is a table with the columns sample "
            f"and fasta, and {os.getcwd()} is the working directory, which -d changes"
        ) from None
    for first, what in NOT_TEXT.items():
        if content.startswith(first):
            raise WorkflowError(
                f"{sheet} is not text, as a sample sheet is, but {what}"
            )
    if len(content) > LARGEST_SHEET:
        raise WorkflowError(
            f"{sheet} has more than {LARGEST_SHEET >> 20} MB, which no sample sheet has: expected "
            "a table with the columns sample and fasta"
        )
    return decode(sheet, content)


def decode(sheet, content):
    """Return bytes as text; other encodings than UTF-8 and marked UTF-16 are refused."""
    marked = content.startswith((b"\xff\xfe", b"\xfe\xff"))
    try:
        text = content.decode("utf-16" if marked else "utf-8-sig")
    except UnicodeDecodeError as error:
        before = content[: error.start].replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        line = 1 if marked else before.count(b"\n") + 1
        raise refused(
            sheet,
            line,
            f"byte 0x{content[error.start]:02x} is not {'UTF-16' if marked else 'UTF-8'}: expected "
            "a sheet saved as UTF-8 text",
        ) from None
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise refused(
            sheet,
            line,
            "has NUL characters (UTF-16 without a mark?): expected a sheet saved as UTF-8 text",
        )
    return text


def read_header(sheet):
    """Find the header line, by which it is decided what separates the columns.

    Returns:
        The header's line number, its column names, the delimiter, and the lines below as
        (number, text), without comments.
    """
    text = read_text(sheet).replace("\r\n", "\n").replace("\r", "\n")
    lines = [
        (number, line)
        for number, line in enumerate(text.split("\n"), 1)
        if line.strip(BLANKS) and not line.lstrip(' "').startswith("#")
    ]
    while lines and not lines[0][1].strip(BLANKS + ",;"):
        del lines[0]  # of a spreadsheet whose first rows are empty
    if not lines:
        raise WorkflowError(f"{sheet} has no rows and no header: {EXPECTED_COLUMNS}")
    number, first = lines.pop(0)
    readings = {
        delimiter: read_names(sheet, number, first, delimiter)
        for delimiter in "\t,;"
        if delimiter in first
    }
    for delimiter, names in readings.items():
        if set(COLUMNS) <= set(names):
            break
    else:
        names = next(iter(readings.values()), [first.strip(BLANKS)])
        delimiter = "\t"
    check_columns(sheet, number, names)
    return number, names, delimiter, lines


def read_names(sheet, number, header, delimiter):
    """Return the column names of a header line, without the nameless ones at its end."""
    names = [cell.lower() for cell in split_line(sheet, number, header, delimiter)]
    while names and not names[-1]:
        names.pop()
    return names


def check_columns(sheet, line, names):
    """Refuse columns that are missing, unknown, or there twice."""
    found = ", ".join(repr(name[:60]) for name in names)
    for name in COLUMNS:
        if name not in names:
            raise refused(
                sheet, line, f"no column {name} among {found}; {EXPECTED_COLUMNS}"
            )
    for place, name in enumerate(names):
        if name not in COLUMNS:
            raise refused(sheet, line, f"unknown; {EXPECTED_COLUMNS}", repr(name[:60]))
        if name in names[:place]:
            raise refused(sheet, line, "is there twice; expected it once", name)


def split_line(sheet, number, text, delimiter):
    """Return the cells of a line, stripped. A quote that is not closed does not reach the next."""
    try:
        (cells,) = csv.reader([text], delimiter=delimiter, strict=True)
    except csv.Error as error:
        raise refused(
            sheet,
            number,
            f'cannot be split into cells ({error}): expected a cell that begins with " to end with '
            'it, and " within it to be doubled',
        ) from None
    return [cell.strip(BLANKS) for cell in cells]


# ---- the rows -----------------------------------------------------------------------------------


def read_row(sheet, line, cells, columns):
    """Return a row of checked cells."""
    expected = f"expected {len(columns)} cells, {' and '.join(columns)}"
    if any(cells[len(columns) :]):
        raise refused(
            sheet,
            line,
            f"{len(cells)} cells, of which {cells[len(columns):]} are too many; {expected}",
        )
    values = dict(zip(columns, cells))
    for column in columns:
        if not values.get(column):
            raise refused(sheet, line, f"is empty or missing; {expected}", column)
    row = Row(sheet, line, *(values[column] for column in COLUMNS))
    if not SAMPLE_NAME.fullmatch(row.sample) or len(row.sample) > LONGEST_SAMPLE_NAME:
        raise refused(
            sheet,
            line,
            f"{row.sample!r} cannot name a folder; expected up to "
            f"{LONGEST_SAMPLE_NAME} letters (A to Z, a to z), digits, dots, underscores and "
            "hyphens, a letter or digit first",
            "sample",
        )
    if unfit := UNFIT_FOR_PATHS.search(row.fasta):
        raise refused(
            sheet,
            line,
            f"{row.fasta!r} has {unfit[0]!r} in it; expected a path without "
            "braces, which Snakemake reads as wildcards, and without control characters",
            "fasta",
        )
    return row


def check_sample_spellings(rows):
    """Refuse samples whose names differ in case only.

    Where file systems ignore case (macOS, Windows, some network shares), or once the results are
    copied there, the two would share a folder and overwrite each other.
    """
    first = {}
    for row in rows:
        other = first.setdefault(row.sample.lower(), row)
        if other.sample != row.sample:
            raise refused(
                row.sheet,
                row.line,
                f"{row.sample!r} differs from {other.sample!r} of line "
                f"{other.line} in case only, and some file systems would keep both in one folder; "
                "expected one spelling, or two names",
                "sample",
            )


def check_repeated_files(rows):
    """Refuse a file that a sample has twice, under whatever spellings of its path."""
    first = {}
    counts = {
        sample: len(fastas) for sample, fastas in group_rows(rows).items()
    }  # most samples have one file, and nothing is asked of the disk
    for row in rows:
        if counts[row.sample] == 1:
            continue
        other = first.setdefault((row.sample, file_identity(row.fasta)), row)
        if other is not row:
            spelling = "" if other.fasta == row.fasta else f" (as {other.fasta})"
            raise refused(
                row.sheet,
                row.line,
                f"{row.fasta} is in sample {row.sample!r} already, on line "
                f"{other.line}{spelling}; expected each file once in a sample",
                "fasta",
            )


def file_identity(path):
    """Return what two paths of one file have in common, also where there is no such file."""
    try:
        found = os.stat(path)
    except OSError:
        return unicodedata.normalize("NFC", os.path.realpath(path))
    return found.st_dev, found.st_ino


def file_trouble(path):
    """Say what keeps a path from being read as a file; "" where nothing does."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        link = os.path.islink(path)
        return (
            f"is a link to {os.readlink(path)}, which does not exist"
            if link
            else "does not exist"
        )
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if stat.S_ISDIR(mode):
        return "is a folder, not a file"
    if not stat.S_ISREG(mode):
        return "is a pipe or a device, not a file"
    return "" if os.access(path, os.R_OK) else "cannot be read (no permission)"
