"""Reads the sample sheet. What is wrong with it is told in one sentence, with line and column."""

import csv
import os
import re
from pathlib import Path

COLUMNS = ("sample", "fasta")
# The name of a sample becomes a folder; a brace would be a wildcard to Snakemake.
SAMPLE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
UNFIT_IN_PATHS = re.compile(r"[\x00-\x1f\x7f{}]")
SHEET_HINT = (
    "it is a tab-separated table with the columns sample and fasta, and a header line"
)


def read_sheet(sheet):
    """Return the text of a sheet, whatever a spreadsheet program made of its encoding."""
    try:
        content = Path(sheet).read_bytes()
    except OSError as error:
        raise WorkflowError(
            f"cannot read the sample sheet {sheet} (config: samples): {error.strerror}; "
            f"{SHEET_HINT}, and {os.getcwd()} is the working directory, which -d changes"
        )
    if content.startswith(b"PK\x03\x04"):
        raise WorkflowError(
            f"the sample sheet {sheet} is a workbook of a spreadsheet program: save it as "
            "tab-separated text"
        )
    is_wide = content.startswith((b"\xff\xfe", b"\xfe\xff"))
    try:
        text = content.decode("utf-16" if is_wide else "utf-8-sig")
    except UnicodeDecodeError:
        raise WorkflowError(
            f"the sample sheet {sheet} is not UTF-8 text: save it as UTF-8; {SHEET_HINT}"
        )
    return text.replace("\r\n", "\n").replace("\r", "\n")


def sheet_rows(sheet):
    """Yield the number and the cells of each line of a sheet that holds something."""
    text = read_sheet(sheet)
    numbered = [
        (number, line)
        for number, line in enumerate(text.split("\n"), 1)
        if line.strip() and not line.lstrip().startswith("#")
    ]
    header = numbered[0][1] if numbered else ""
    delimiter = next((each for each in "\t,;" if each in header), "\t")
    for number, line in numbered:
        try:
            cells = [
                cell.strip() for cell in next(csv.reader([line], delimiter=delimiter))
            ]
        except csv.Error as error:
            raise WorkflowError(
                f"the sample sheet {sheet}, line {number}: {error}; {SHEET_HINT}"
            )
        if any(cells):
            yield number, cells


def read_samples(sheet):
    """Return {sample: [(line, FASTA), ...]}; the files of a sample are read one after the other.

    Rows that are blank or begin with "#" are skipped, cells are stripped, the names of columns may be
    in any case, and cells may be parted by tabs, commas or semicolons.
    """
    rows = sheet_rows(sheet)
    number, header = next(rows, (1, []))
    names = [name.lower() for name in header]
    place = f"the sample sheet {sheet}, line {number}"
    for name in COLUMNS:
        if names.count(name) != 1:
            raise WorkflowError(
                f"{place}: expected one column called {name}, found {header or 'no header line'}"
            )
    if unknown := [name for name in header if name.lower() not in COLUMNS]:
        raise WorkflowError(
            f"{place}: unknown column {unknown[0]!r}; expected only sample and fasta"
        )
    samples = {}
    for number, cells in rows:
        add_row(samples, f"the sample sheet {sheet}", number, names, cells)
    if not samples:
        raise WorkflowError(
            f"the sample sheet {sheet} has no rows below its header line"
        )
    return samples


def add_row(samples, sheet, number, names, cells):
    """Check a row, and add it to the samples."""
    if len(cells) != len(names):
        raise WorkflowError(
            f"{sheet}, line {number}: expected {len(names)} cells, found {len(cells)}: {cells}"
        )
    sample, fasta = (cells[names.index(name)] for name in COLUMNS)
    if not SAMPLE_NAME.fullmatch(sample):
        raise WorkflowError(
            f"{sheet}, line {number}, column sample: expected letters, digits, '.', '_' and '-', a "
            f"letter or digit first, 100 at most, found {sample!r}"
        )
    if not fasta or UNFIT_IN_PATHS.search(fasta):
        raise WorkflowError(
            f"{sheet}, line {number}, column fasta: expected a path without braces and control "
            f"characters, found {fasta!r}"
        )
    for other in samples:
        if other != sample and other.lower() == sample.lower():
            raise WorkflowError(
                f"{sheet}, line {number}, column sample: {sample!r} and {other!r} differ only in case, "
                "and would be one folder on some file systems: rename one of them"
            )
    for line, path in samples.setdefault(sample, []):
        if os.path.realpath(path) == os.path.realpath(fasta):
            raise WorkflowError(
                f"{sheet}, line {number}, column fasta: {fasta!r} is in the sample {sample} twice, "
                f"first in line {line} as {path!r}"
            )
    samples[sample].append((number, fasta))


def check_fastas(sheet, samples):
    """Refuse files that are missing or cannot be read, all of them at once, with their lines."""
    wrong = []
    for number, path in sorted(row for rows in samples.values() for row in rows):
        if not os.path.exists(path):
            wrong.append(f"line {number}: {path} does not exist")
        elif os.path.isdir(path):
            wrong.append(f"line {number}: {path} is a folder, not a FASTA file")
        elif not os.path.isfile(path):
            wrong.append(f"line {number}: {path} is a pipe or a device, not a file")
        elif not os.access(path, os.R_OK):
            wrong.append(f"line {number}: {path} may not be read")
    if wrong:
        raise WorkflowError(
            f"the sample sheet {sheet} has {len(wrong)} file(s) that cannot be used, from "
            f"{os.getcwd()}:\n  " + "\n  ".join(wrong)
        )


SHEET = read_samples(config["samples"])
SAMPLES = {sample: [path for _, path in rows] for sample, rows in SHEET.items()}
