"""The working directory that `virnucpro run` writes: a configuration and a sample sheet.

Both are for people too, who may take them on by hand. So each begins with a line that has the hash
of the rest, and a file that was changed since is never written over.
"""

from __future__ import annotations

import csv
import hashlib
import io
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from virnucpro.cli.configuration import changes, config_text
from virnucpro.errors import InputError
from virnucpro.files import write_bytes

__all__ = ["find_files", "find_samples", "input_type_of", "is_prepared", "write_workdir"]

logger = logging.getLogger(__name__)

_CONFIG = "config/config.yaml"
_SHEET = "config/samples.tsv"

_FASTA = frozenset({".faa", ".fasta", ".fa", ".fas", ".fsa", ".pep", ".aa", ".fna"})
_GENBANK = frozenset({".gb", ".gbk", ".gbff", ".gbf", ".genbank"})
_ENDINGS = _FASTA | _GENBANK
_ARCHIVES = frozenset({".gz", ".bz2", ".xz", ".zst"})
# What the files of each `input_type` are, and what is done with them.
_KINDS = {
    "protein": ("proteins", "which are embedded as they are"),
    "genes": ("GenBank", "whose annotated genes are embedded"),
    "contigs": ("nucleotides", "on which genes are found first"),
}
_SEAL = (
    "# Written by `virnucpro run`, which leaves it alone once it was edited; sha256 of the rest: "
)
_LISTED = 5  # names of files in a message


def is_prepared(out: Path) -> bool:
    """Whether a working directory has a sample sheet."""
    return (out / _SHEET).is_file()


# ---- samples ------------------------------------------------------------------------------------


def find_files(given: Sequence[Path]) -> list[Path]:
    """Return the sequence files, absolute; a folder stands for those in it, told by their names.

    Raises:
        InputError: a folder has no sequence file.
    """
    return [file for each in given for file in _files_of(each)]


def find_samples(files: Sequence[Path]) -> dict[str, Path]:
    """Return the file of each sample, which is called by the file's name.

    Raises:
        InputError: two files would be one sample, or a name has no letter for the sheet.
    """
    samples: dict[str, Path] = {}
    for path in files:
        name = _sample_name(path)
        for other, its_file in samples.items():
            if other.lower() == name.lower() and its_file != path:
                raise InputError(
                    f"{path} and {its_file} would both be the sample {name}",
                    hint="give one of them, rename one, or write config/samples.tsv by hand, where "
                    "several rows may name one sample",
                )
        samples[name] = path
    return samples


def _files_of(given: Path) -> list[Path]:
    """Return a file, or the sequence files of a folder by name, absolute."""
    if not given.is_dir():
        return [given.absolute()]
    files = sorted(path.absolute() for path in given.iterdir() if path.is_file())
    found = [path for path in files if _stem(path) != path.name]
    if not found:
        raise InputError(
            f"no file in it ends as FASTA or GenBank files do ({', '.join(sorted(_ENDINGS))})",
            path=given,
            hint="give the files themselves: they are taken whatever they are called",
        )
    left_out = [path.name for path in files if path not in found]
    if left_out:
        logger.info(
            "%s: left out %d files whose names do not end as FASTA or GenBank: %s",
            *(given, len(left_out), _listed(left_out)),
        )
    return found


def _listed(names: Sequence[str]) -> str:
    """Return the first of many names as words of a message."""
    return ", ".join(names[:_LISTED]) + (", ..." if len(names) > _LISTED else "")


def _stem(path: Path) -> str:
    """Return a file's name without the endings of its format and of an archive, if it has them."""
    plain = path.with_suffix("") if path.suffix.lower() in _ARCHIVES else path
    return plain.stem if plain.suffix.lower() in _ENDINGS else path.name


def _sample_name(path: Path) -> str:
    """Return the sample of a file: its name without endings, in letters that the sheet allows."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", _stem(path)).lstrip("._-")[:100]
    if not name:
        raise InputError(
            "its name has no letter or digit to call the sample by", path=path, hint="rename it"
        )
    return name


def input_type_of(files: Sequence[Path]) -> tuple[str, str]:
    """Return the `input_type` of files by their content, and the reason as a sentence.

    Raises:
        InputError: they are of several kinds.
    """
    from virnucpro.genes.detect import detect_input_type

    kinds: dict[str, list[str]] = {}
    for path in files:
        if kind := detect_input_type(path):
            kinds.setdefault(kind, []).append(path.name)
    if len(kinds) > 1:
        found = "; ".join(f"{_KINDS[kind][0]}: {_listed(kinds[kind])}" for kind in sorted(kinds))
        raise InputError(
            f"the files are of several kinds, and a run takes one ({found})",
            hint="run each kind on its own, into a folder of its own; --input-type says what all "
            "of them are, where this is a mistake",
        )
    if not kinds:
        return "protein", "no file tells what it holds: taken as proteins (input_type: protein)"
    ((kind, names),) = kinds.items()
    return kind, f"{_listed(names)}: {_KINDS[kind][0]}, {_KINDS[kind][1]} (input_type: {kind})"


# ---- files --------------------------------------------------------------------------------------


def write_workdir(out: Path, samples: Mapping[str, Path], values: Mapping[str, Any]) -> list[str]:
    """Write a configuration and a sample sheet, and say in what they differ from earlier ones.

    Args:
        out: working directory.
        samples: the file of each sample.
        values: of the configuration, by dotted names; the other keys get their defaults.

    Raises:
        InputError: one of the files is there and was not written here, or was changed since.
    """
    config, sheet = config_text(values), _sheet_text(samples)
    earlier_config, earlier_sheet = (_earlier(out / name) for name in (_CONFIG, _SHEET))
    found = [] if earlier_config is None else changes(earlier_config, config)
    if earlier_sheet is not None:
        before, after = earlier_sheet.splitlines()[1:], sheet.splitlines()[1:]
        found += [f"sample added: {row}" for row in after if row not in before]
        found += [f"sample left out, its results stay: {row}" for row in before if row not in after]
    for name, text, earlier in ((_CONFIG, config, earlier_config), (_SHEET, sheet, earlier_sheet)):
        if text != earlier:
            write_bytes(out / name, (_seal(text) + text).encode())
    return found


def _sheet_text(samples: Mapping[str, Path]) -> str:
    """Return the sample sheet."""
    text = io.StringIO()
    rows = csv.writer(text, dialect="excel-tab", lineterminator="\n")
    rows.writerow(["sample", "fasta"])
    rows.writerows((name, str(path)) for name, path in samples.items())
    return text.getvalue()


def _seal(text: str) -> str:
    return f"{_SEAL}{hashlib.sha256(text.encode()).hexdigest()[:16]}\n"


def _earlier(path: Path) -> str | None:
    """Return what an earlier call has written, without its first line; None where nothing is.

    Raises:
        InputError: the file is another's.
    """
    try:
        whole = path.read_text()
    except FileNotFoundError:
        return None
    first, _, text = whole.partition("\n")
    if f"{first}\n" != _seal(text):
        raise InputError(
            "was written or changed by hand, and stays as it is",
            path=path,
            hint="`virnucpro run -o DIR` without files and without options runs the folder as it "
            "stands; or remove the file, and it is written anew",
        )
    return text
