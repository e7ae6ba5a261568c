"""Reads the sample sheet."""

import csv
import os


def read_samples(sheet):
    """Give {sample: [FASTA, ...]}; several rows of one sample are read one after the other."""
    try:
        # utf-8-sig: spreadsheets put a byte order mark before the first column's name
        with open(sheet, newline="", encoding="utf-8-sig") as handle:
            reader = csv.DictReader(
                handle, dialect="excel-tab", restkey="(extra columns)"
            )
            rows = {f"line {reader.line_num}": dict(row) for row in reader}
    except (OSError, UnicodeDecodeError) as error:
        raise WorkflowError(
            f"cannot read the sample sheet {sheet} (config: samples); it is a tab-separated table "
            f"with the columns sample and fasta, and {os.getcwd()} is the working directory, "
            "which -d changes",
            error,
        )
    try:
        validate({"rows": rows}, "../schemas/samples.schema.yaml")
    except WorkflowError as error:
        raise WorkflowError(f"the sample sheet {sheet} is not valid", error)
    samples = {}
    for row in rows.values():
        samples.setdefault(row["sample"], []).append(row["fasta"])
    return samples


SAMPLES = read_samples(config["samples"])
