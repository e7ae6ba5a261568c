"""What a user changes between two runs. Each leaves a folder that a run can succeed in, but one."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.stale.folders import Folder

LONG_AGO = 1_000_000_000  # seconds


def append(folder: Folder) -> Path:
    path = folder.path / "data" / "a1.faa"
    text = path.read_text()
    path.write_text(f"{text}>NEW{text.count('>')}\nMKVL\n")
    return path


def input_edited_later(folder: Folder) -> None:
    append(folder)


def input_edited_earlier(folder: Folder) -> None:
    os.utime(append(folder), (LONG_AGO, LONG_AGO))


def input_edited_with_size_and_time_kept(folder: Folder) -> None:
    path = folder.path / "data" / "a1.faa"
    before = path.stat()
    path.write_text(path.read_text().replace("MKT", "MKV"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def input_replaced(folder: Folder) -> None:
    other = folder.path / "data" / "c1.faa"
    os.utime(other, (LONG_AGO, LONG_AGO))
    other.replace(folder.path / "data" / "a2.faa")


def input_touched(folder: Folder) -> None:
    os.utime(folder.path / "data" / "a1.faa")


def sheet_with_files_in_another_order(folder: Folder) -> None:
    folder.sheet[0], folder.sheet[1] = folder.sheet[1], folder.sheet[0]


def sheet_with_another_file(folder: Folder) -> None:
    folder.sheet[0] = ("a", "data/d1.faa")


def sheet_with_another_sample(folder: Folder) -> None:
    if "c" not in folder.samples:
        folder.sheet.append(("c", "data/c2.faa"))


def sheet_without_the_last_sample(folder: Folder) -> None:
    folder.sheet = folder.sheet[:2] if len(folder.samples) > 1 else folder.sheet[:1]


def another_model(folder: Folder) -> None:
    folder.config["model"] = "data/others.pt"


def model_replaced(folder: Folder) -> None:
    path = folder.path / "data" / "weights.pt"
    path.write_text("WEIGHTS")
    os.utime(path, (LONG_AGO, LONG_AGO))


def keys(**sections: Any) -> Callable[[Folder], None]:
    """Make a change of the configuration."""

    def change(folder: Folder) -> None:
        for section, value in sections.items():
            if isinstance(value, dict):
                folder.config[section] = folder.config.get(section, {}) | value
            else:
                folder.config[section] = value

    return change


CHANGES: dict[str, Callable[[Folder], None]] = {
    function.__name__: function
    for function in (
        input_edited_later,
        input_edited_earlier,
        input_edited_with_size_and_time_kept,
        input_replaced,
        input_touched,
        sheet_with_files_in_another_order,
        sheet_with_another_file,
        sheet_with_another_sample,
        sheet_without_the_last_sample,
        another_model,
        model_replaced,
    )
} | {
    "layers": keys(embed={"layers": [3]}),
    "pooling": keys(embed={"pooling": "cls"}),
    "residues_and_scores": keys(embed={"pooling": "none", "pseudo_perplexity": "one-pass"}),
    "dtype": keys(embed={"dtype": "bfloat16"}),
    "output_dtype": keys(embed={"output_dtype": "float16"}),
    "plan": keys(plan={"token_budget": 2048}),
    "windows": keys(plan={"long_sequences": "window"}),
    "more_exports": keys(merge={"exports": ["npy", "parquet", "fair-esm"]}),
    "store": keys(store=["store"]),
    "close_rows": keys(store_accept="close"),
    "no_exports": keys(merge={"exports": []}),
    "contigs": keys(input_type="contigs"),
    "contig_bases": keys(input_type="contigs", genes={"max_contig_bases": 5000}),
    "contig_means": keys(input_type="contigs", merge={"contigs": "mean"}),
    "duplicate_ids": keys(duplicate_ids="suffix"),
    "max_record_residues": keys(split={"max_record_residues": 5000}),
}


def change(folder: Folder, name: str) -> None:
    """Apply a change by its name, and write the configuration."""
    CHANGES[name](folder)
    folder.write()


def refuse(folder: Folder) -> None:
    """Add a record that `split` refuses: an id that is there already."""
    path = folder.path / "data" / "a1.faa"
    path.write_text(path.read_text() + path.read_text().partition("\n")[0] + "\nMKWW\n")
