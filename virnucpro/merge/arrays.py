"""The arrays of a shard: nothing is merged before it is verified."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from virnucpro.embed.receipt import ShardReceipt, read_receipt
from virnucpro.errors import DataError
from virnucpro.files import sha256_of
from virnucpro.formats import EXTRA_ARRAYS, extra_path
from virnucpro.plan.plan import Plan

__all__ = ["all_finite", "open_array", "verify_shard"]

_AGAIN = "remove the shard's .npy and .json and run again: only this shard is computed again"
# All ones in a float's exponent, and only there: infinite or not a number.
_EXPONENTS: dict[int, np.unsignedinteger[Any]] = {
    2: np.uint16(0x7C00),
    4: np.uint32(0x7F800000),
    8: np.uint64(0x7FF0000000000000),
}


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
) -> ShardReceipt:
    """Check one shard's arrays against their receipt, and all against the plan.

    A file is hashed in blocks and then mapped, so memory does not grow with the shard.

    Args:
        npy: the array; its stem is the shard's name.
        receipt: the JSON that was written with it.
        plan: the shard's plan.
        sha256: the array's hash, begun earlier; made here where it is left out.

    Raises:
        DataError: anything differs; the message names the shard and both sides.
        InputError: the receipt has another format number.
    """
    facts = read_receipt(receipt)
    _same(npy, "shard", "its file name says", npy.stem, "the receipt", facts.shard)
    _same(npy, "plan", "the plan is", plan.content_hash, "the receipt names", facts.plan_hash)
    rows = int(np.count_nonzero(np.bincount(plan.row)))
    _same(npy, "sequences", "the plan has", rows, "the receipt", facts.sequences)
    if not npy.is_file():
        raise DataError("is missing, its receipt is there", path=npy, hint=_AGAIN)
    found = sha256.result() if sha256 else sha256_of(npy)
    _same(npy, "sha256", "the file has", found, "the receipt", facts.array_sha256)
    array = open_array(npy)
    _same(npy, "shape", "the array has", list(array.shape), "the receipt", facts.shape)
    _same(npy, "dtype", "the array has", array.dtype.name, "the receipt", facts.dtype)
    outer = [len(array), array.shape[1]]
    named = [facts.sequences, len(set(facts.layers))]
    _same(npy, "sequences and layers", "the array has", outer, "the receipt names", named)
    for name, stated in facts.extras.items():
        length = int(plan.residue_offsets[-1]) if name == "residues" else rows
        _check_extra(npy, name, stated, length)
    _check_quarantined(npy, facts, plan)
    return facts


def _check_extra(npy: Path, name: str, sha256: str, length: int) -> None:
    """Check one of `EXTRA_ARRAYS` against its hash in the receipt, and its length in the plan."""
    path = extra_path(npy, name)
    if name not in EXTRA_ARRAYS or not path.is_file():
        raise DataError(f"{name} is missing, its receipt is there", path=path, hint=_AGAIN)
    _same(npy, f"sha256 of {name}", "the file has", sha256_of(path), "the receipt", sha256)
    array = open_array(path, 3 if name == "residues" else 1)
    _same(npy, name, "the array has", len(array), "the plan", length)


def all_finite(values: npt.NDArray[np.floating[Any]]) -> bool:
    """Tell whether all values are finite, by their bits: numpy's own test is slow on float16."""
    exponent = _EXPONENTS[values.itemsize]
    return bool((values.view(exponent.dtype) & exponent).max(initial=0) < exponent)


def _same(npy: Path, what: str, left: str, found: object, right: str, stated: object) -> None:
    if found != stated:
        raise DataError(
            f"shard {npy.stem}: {what} differs: {left} {found}, {right} {stated}",
            path=npy,
            hint=_AGAIN,
        )


def _check_quarantined(npy: Path, receipt: ShardReceipt, plan: Plan) -> None:
    """Check that each quarantined row is listed once, with the plan's key of that row."""
    listed = receipt.quarantined_by_row()
    _same(npy, "quarantined rows", "distinct", len(listed), "listed", len(receipt.quarantined))
    chosen = np.isin(plan.row, np.fromiter(listed, dtype=np.int64))
    keys = dict(zip(plan.row[chosen].tolist(), plan.keys[chosen], strict=True))
    for row, sequence in listed.items():
        planned = keys[row].tobytes().hex() if row in keys else None
        _same(npy, f"key of row {row}", "the plan has", planned, "the receipt", sequence.key)
