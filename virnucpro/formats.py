"""What the steps' files have in common: format numbers, shared names, and JSON as dataclasses.

A number is raised when the bytes or the meaning of a step's output change, and only then. The
workflow passes the same numbers as rule parameters, so that raising one re-runs just the steps
whose output changes; each command refuses a number that is not its own.
"""

import dataclasses
import functools
import zlib
from collections.abc import Callable
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, cast, get_args, get_origin, get_type_hints

from virnucpro.errors import DataError, InputError
from virnucpro.files import read_json

__all__ = [
    "BUDGET_FORMAT",
    "EMBED_FORMAT",
    "ENGINE_VERSION",
    "EXTRA_ARRAYS",
    "GENES_FORMAT",
    "LIMITED_IDS",
    "MERGE_FORMAT",
    "MODEL_FORMAT",
    "PLAN_FORMAT",
    "POOLINGS",
    "PSEUDO_PERPLEXITIES",
    "REPORT_FORMAT",
    "SPLIT_FORMAT",
    "STEP_LOG_COLUMNS",
    "STORE_FORMAT",
    "check_format",
    "extra_path",
    "parse",
    "read_as",
    "step_log_checksum",
]

T = TypeVar("T")

MODEL_FORMAT = 1
GENES_FORMAT = 1
SPLIT_FORMAT = 3
PLAN_FORMAT = 2
BUDGET_FORMAT = 2
EMBED_FORMAT = 3
MERGE_FORMAT = 3
REPORT_FORMAT = 5
STORE_FORMAT = 1

ENGINE_VERSION = 2
"""Raised by hand when the engine gives other bits for the same request: what a store holds of an
earlier engine is then not taken. `tests/unit/store/test_golden.py` reminds of it."""

EXTRA_ARRAYS = ("residues", "pseudo_perplexity")
"""Arrays that a shard may have beside its embeddings, as its receipt calls them."""

POOLINGS = {
    "mean": "mean over residues",
    "cls": "representation of the token before the first residue",
    "max": "largest value over residues",
    "none": "mean over residues; each residue in residues.h5",
}
"""How residues become one vector, and what a page calls it. ``none`` keeps every residue, beside
their mean."""

PSEUDO_PERPLEXITIES = ("none", "one-pass")
"""Whether a sequence's pseudo-perplexity is computed, and how: from one pass in which nothing is
masked, the exponential of the mean negative log-likelihood of its residues."""

LIMITED_IDS: dict[str, Callable[[str], bool]] = {
    "uniprot-h5": lambda text: text not in ("", ".") and "/" not in text and "\0" not in text
}
"""The exports that not every id can have, and whether one can: HDF5 takes a "/" for a path."""

STEP_LOG_COLUMNS = ("step", "items", "tokens", "seconds", "peak_memory_bytes", "note", "crc32")
"""Columns of a step log; the last is the CRC-32 of the line up to it, see `step_log_checksum`."""


def check_format(what: str, found: object, expected: int, *, path: object = None) -> None:
    """Refuse a file or a caller that speaks another format number.

    Args:
        what: what carries the number, for the message ("plan", "split manifest", ...).
        found: the number that was found.
        expected: the number that this package writes and reads.
        path: the file, where there is one.

    Raises:
        InputError: the numbers differ.
    """
    if found != expected:
        raise InputError(
            f"{what} has format {found}, this version of virnucpro uses format {expected}",
            path=path,
            hint="remove the file so that it is made again, or use the version that wrote it",
        )


def extra_path(embeddings: Path, name: str) -> Path:
    """Return the file of one of `EXTRA_ARRAYS`, which lies beside the shard's embeddings."""
    return embeddings.with_suffix(f".{name}.npy")


def step_log_checksum(line: str) -> str:
    """Return the last cell of a step log's line, from the others joined by tabs."""
    return f"{zlib.crc32(line.encode()):08x}"


def read_as(kind: type[T], path: Path, what: str, number: int) -> T:
    """Read a JSON file of this package into the dataclass that describes it.

    Args:
        kind: the dataclass; entries of the file that it has no field for are left out.
        path: the file.
        what: what the file is, for the message ("plan report", "split manifest", ...).
        number: the format number that this package writes and reads.

    Raises:
        DataError: the file is missing or damaged, or a field is missing or of another type.
        InputError: it has another format number.
    """
    value = read_json(path)
    check_format(what, value.get("format"), number, path=path)
    return parse(kind, value, path)


def parse(kind: type[T], value: dict[str, Any], path: object) -> T:
    """Make a dataclass of a JSON object, as `read_as` of the file `path`."""
    try:
        return cast(T, _parse(kind, value, ""))
    except ValueError as error:
        hint = "remove the file so that it is made again"
        raise DataError(str(error), path=path, hint=hint) from None


def _parse(kind: Any, value: Any, name: str) -> Any:
    """Check a value's type down to its last entry, and make the dataclasses that are in it."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is UnionType:  # of a type and None
        return None if value is None else _parse(inner[0], value, name)
    expected = origin or (dict if dataclasses.is_dataclass(kind) else kind)
    accepted = (int, float) if expected is float else (expected,)
    if type(value) not in accepted and expected is not object:
        raise ValueError(f"{name or 'it'} is {value!r}, expected {kind}")
    if origin is list:
        return [_parse(inner[0], item, f"{name}[{i}]") for i, item in enumerate(value)]
    if origin is dict:
        return {key: _parse(inner[1], item, f"{name}[{key!r}]") for key, item in value.items()}
    return _parse_fields(kind, value, name) if dataclasses.is_dataclass(kind) else value


def _parse_fields(kind: Any, value: dict[str, Any], name: str) -> Any:
    types, needed = _fields_of(kind)
    prefix = f"{name}." if name else ""
    if missing := [prefix + field for field in needed if field not in value]:
        raise ValueError(f"has no {', '.join(missing)}")
    found = {field: value[field] for field in types if field in value}
    return kind(**{field: _parse(types[field], found[field], prefix + field) for field in found})


@functools.cache
def _fields_of(kind: Any) -> tuple[dict[str, Any], list[str]]:
    """Return the types of a dataclass's fields, and the fields without a default."""
    missing = dataclasses.MISSING
    needed = [field.name for field in dataclasses.fields(kind) if field.default is missing]
    return get_type_hints(kind), needed
