"""Shard embeddings and their receipts: nothing is merged before it is proven to belong here."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from virnucpro.errors import DataError
from virnucpro.files import read_json, sha256_of
from virnucpro.formats import EMBED_FORMAT, EXTRA_ARRAYS, check_format, extra_path
from virnucpro.plan.plan import Plan

__all__ = [
    "ShardEmbeddings",
    "all_finite",
    "check_agreement",
    "check_complete",
    "open_array",
    "read_receipt",
    "verify_shard",
]

logger = logging.getLogger(__name__)

_AGAIN = "remove the shard's .npy and .json and run again: only this shard is computed again"
_FIELDS: dict[str, type | tuple[type, ...]] = {
    "shard": str,
    "array_sha256": str,
    "extras": dict,
    "shape": list,
    "dtype": str,
    "plan_hash": str,
    "sequences": int,
    "weights_sha256": str,
    "model": str,
    "demo": bool,
    "layers": list,
    "pooling": str,
    "pseudo_perplexity": str,
    "compute_dtype": str,
    "device": str,
    "backend": str,
    "tokens_per_step": int,
    "versions": dict,
    "quarantined": list,
    "steps": int,
    "retries": int,
    "recomputed_float32": int,
}
_MUST_AGREE = (
    *("model", "weights_sha256", "layers", "pooling", "pseudo_perplexity"),
    *("compute_dtype", "dtype"),
)
# All ones in a float's exponent, and only there: infinite or not a number.
_EXPONENTS: dict[int, np.unsignedinteger[Any]] = {
    2: np.uint16(0x7C00),
    4: np.uint32(0x7F800000),
    8: np.uint64(0x7FF0000000000000),
}
_MAY_DIFFER = ("device", "backend", "tokens_per_step", "versions")


@dataclass(frozen=True)
class ShardEmbeddings:
    """A shard's array and receipt, checked against each other and against the plan.

    Attributes:
        npy: the array's file.
        receipt: the receipt as it was read.
        array: [sequences, layers, dim] float32 or float16, mapped from the file.
        quarantined: row -> (reason, detail) of the sequences that have no embedding.
        extras: name -> array, mapped from its file, of those of `virnucpro.formats.EXTRA_ARRAYS`
            that were asked for.
    """

    npy: Path
    receipt: dict[str, Any]
    array: npt.NDArray[np.floating[Any]]
    quarantined: dict[int, tuple[str, str]]
    extras: dict[str, npt.NDArray[np.floating[Any]]]


def read_receipt(path: Path) -> dict[str, Any]:
    """Read the receipt of a shard's embeddings.

    Raises:
        InputError: another version of the program wrote it.
        DataError: it is missing, or a field is missing or of another type.
    """
    receipt = read_json(path)
    check_format("embedding receipt", receipt.get("format"), EMBED_FORMAT, path=path)
    for field, kind in _FIELDS.items():
        if not isinstance(receipt.get(field), kind):
            raise DataError(
                f"field {field!r} is {receipt.get(field)!r}, expected {kind}",
                path=path,
                hint=_AGAIN,
            )
    return receipt


def open_array(npy: Path, dimensions: int = 3) -> npt.NDArray[np.floating[Any]]:
    """Map an array of a shard into memory; pickled objects are refused.

    Args:
        npy: the file.
        dimensions: 3 for [sequences or residues, layers, dim] in float32 or float16, 1 for
            [sequences] in float64.

    Raises:
        DataError: the file is missing, truncated, pickled, or not a float array in C order.
    """
    try:
        array = np.load(npy, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise DataError("is missing", path=npy, hint=_AGAIN) from None
    except (ValueError, EOFError) as error:
        raise DataError(f"is not a plain .npy array ({error})", path=npy, hint=_AGAIN) from error
    if not isinstance(array, np.ndarray):
        raise DataError("is an archive, not a plain .npy array", path=npy, hint=_AGAIN)
    kinds = (np.float64,) if dimensions == 1 else (np.float32, np.float16)
    if array.ndim != dimensions or array.dtype not in kinds:
        raise DataError(
            f"holds {array.dtype} {list(array.shape)}, expected "
            f"{' or '.join(kind.__name__ for kind in kinds)} of {dimensions} dimension(s)",
            path=npy,
            hint=_AGAIN,
        )
    return array


def verify_shard(
    npy: Path, receipt: Path, plan: Plan, sha256: Future[str] | None = None
) -> ShardEmbeddings:
    """Check one shard's arrays against their receipt, and all against the plan.

    A file is hashed in blocks and then mapped, so memory does not grow with the shard.

    Args:
        npy: the array; its stem is the shard's name.
        receipt: the JSON that was written with it.
        plan: the shard's plan.
        sha256: the array's hash, begun earlier; made here where it is left out.

    Returns:
        The mapped array with its receipt.

    Raises:
        DataError: anything differs; the message names the shard and both sides.
        InputError: the receipt has another format number.
    """
    facts = read_receipt(receipt)
    _same(npy, "shard", "its file name says", npy.stem, "the receipt", facts["shard"])
    _same(npy, "plan", "the plan is", plan.content_hash, "the receipt names", facts["plan_hash"])
    rows = int(np.count_nonzero(np.bincount(plan.row)))
    _same(npy, "sequences", "the plan has", rows, "the receipt", facts["sequences"])
    if not npy.is_file():
        raise DataError("is missing, its receipt is there", path=npy, hint=_AGAIN)
    found = sha256.result() if sha256 else sha256_of(npy)
    _same(npy, "sha256", "the file has", found, "the receipt", facts["array_sha256"])
    array = open_array(npy)
    _same(npy, "shape", "the array has", list(array.shape), "the receipt", facts["shape"])
    _same(npy, "dtype", "the array has", array.dtype.name, "the receipt", facts["dtype"])
    outer = [len(array), array.shape[1]]
    named = [facts["sequences"], len(set(facts["layers"]))]
    _same(npy, "sequences and layers", "the array has", outer, "the receipt names", named)
    extras = {}
    for name, stated in facts["extras"].items():
        path = extra_path(npy, name)
        if name not in EXTRA_ARRAYS or not path.is_file():
            raise DataError(f"{name} is missing, its receipt is there", path=path, hint=_AGAIN)
        _same(npy, f"sha256 of {name}", "the file has", sha256_of(path), "the receipt", stated)
        extras[name] = open_array(path, 3 if name == "residues" else 1)
        length = int(plan.residue_offsets[-1]) if name == "residues" else rows
        _same(npy, name, "the array has", len(extras[name]), "the plan", length)
    return ShardEmbeddings(npy, facts, array, _quarantined(npy, facts, plan), extras)


def all_finite(values: npt.NDArray[np.floating[Any]]) -> bool:
    """Say whether all values are finite, by their bits: of float16 numpy looks at one at a time."""
    exponent = _EXPONENTS[values.itemsize]
    return bool((values.view(exponent.dtype) & exponent).max(initial=0) < exponent)


def _same(npy: Path, what: str, left: str, found: object, right: str, stated: object) -> None:
    if found != stated:
        raise DataError(
            f"shard {npy.stem}: {what} differs: {left} {found}, {right} {stated}",
            path=npy,
            hint=_AGAIN,
        )


def _quarantined(npy: Path, receipt: dict[str, Any], plan: Plan) -> dict[int, tuple[str, str]]:
    """Give row -> (reason, detail); each row's key must be the plan's key of that row."""
    entries = receipt["quarantined"]
    listed = {int(entry["row"]): entry for entry in entries}
    _same(npy, "quarantined rows", "distinct", len(listed), "listed", len(entries))
    if not listed:
        return {}
    wanted = np.isin(plan.row, np.fromiter(listed, dtype=np.int64))
    keys = dict(zip(plan.row[wanted].tolist(), plan.keys[wanted], strict=True))
    for row, entry in listed.items():
        planned = keys[row].tobytes().hex() if row in keys else None
        _same(npy, f"key of row {row}", "the plan has", planned, "the receipt", entry["key"])
    return {row: (str(entry["reason"]), str(entry["detail"])) for row, entry in listed.items()}


def check_complete(names: Sequence[str], directory: Path, suffixes: Sequence[str]) -> None:
    """Check that a folder holds one file of each suffix for every shard.

    Other files may lie beside them: shards have names that are of their content, and those of
    earlier inputs stay until they are pruned.

    Args:
        names: the shards of the manifest.
        directory: the folder to look into.
        suffixes: for instance ``(".npy", ".json")``.

    Raises:
        DataError: files are missing; the message lists them.
    """
    expected = {f"{name}{suffix}" for name in names for suffix in suffixes}
    found = {path.name for path in directory.iterdir()} if directory.is_dir() else set()
    if missing := sorted(expected - found):
        more = ", ..." if len(missing) > 10 else ""
        raise DataError(
            f"does not hold the manifest's {len(names)} shards; {len(missing)} missing: "
            f"{', '.join(missing[:10])}{more}",
            path=directory,
            hint="run the missing shards again",
        )


def check_agreement(receipts: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    """Check that all shards were computed in the same way.

    Weights, layers, pooling, dtypes and dimension must be the same. Device, backend, tokens per
    step and versions may differ, for they only change the last bits; that is logged.

    Args:
        receipts: the receipts of at least one verified shard.

    Returns:
        Field -> distinct values in shard order, for the fields that may differ.

    Raises:
        DataError: two shards differ in a field that must agree; both are named.
    """
    first = _must_agree(receipts[0])
    for receipt in receipts[1:]:
        for field, value in _must_agree(receipt).items():
            if value != first[field]:
                raise DataError(
                    f"{field} differs between shards: {receipts[0]['shard']} has {first[field]}, "
                    f"{receipt['shard']} has {value}",
                    hint="embed all shards of a sample with the same weights and options",
                )
    return {field: _distinct(field, receipts) for field in _MAY_DIFFER}


def _must_agree(receipt: dict[str, Any]) -> dict[str, Any]:
    fields = {field: receipt[field] for field in _MUST_AGREE}
    return {**fields, "dimension": receipt["shape"][2]}


def _distinct(field: str, receipts: Sequence[dict[str, Any]]) -> list[Any]:
    values: list[Any] = []
    for receipt in receipts:
        if receipt[field] not in values:
            values.append(receipt[field])
    if len(values) > 1:
        logger.warning(
            "shards differ in %s: %s; values agree within rounding, not bit for bit",
            field,
            ", ".join(map(str, values)),
        )
    return values
