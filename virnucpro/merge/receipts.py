"""Shard embeddings and their receipts; nothing is merged before it is verified."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from virnucpro.errors import DataError
from virnucpro.files import sha256_of
from virnucpro.formats import EMBED_FORMAT, EXTRA_ARRAYS, extra_path, read_as
from virnucpro.plan.plan import Plan

__all__ = [
    "Execution",
    "Quarantined",
    "ShardEmbeddings",
    "ShardReceipt",
    "all_finite",
    "check_agreement",
    "check_complete",
    "open_array",
    "read_receipt",
    "verify_shard",
]

logger = logging.getLogger(__name__)

_AGAIN = "remove the shard's .npy and .json and run again: only this shard is computed again"
_MUST_AGREE = (
    *("model", "weights_sha256", "layers", "pooling", "pseudo_perplexity"),
    *("compute_dtype", "dtype", "dimension"),
)
# All ones in a float's exponent, and only there: infinite or not a number.
_EXPONENTS: dict[int, np.unsignedinteger[Any]] = {
    2: np.uint16(0x7C00),
    4: np.uint32(0x7F800000),
    8: np.uint64(0x7FF0000000000000),
}


@dataclass(frozen=True)
class Quarantined:
    """A sequence without an embedding."""

    row: int  # in the shard's array
    key: str  # in hexadecimal
    reason: str
    detail: str


@dataclass(frozen=True)
class ShardReceipt:
    """What the receipt of a shard's embeddings says."""

    shard: str
    plan_hash: str  # content hash of the plan
    sequences: int
    model: str
    weights_sha256: str
    demo: bool  # whether the weights are random
    pooling: str
    pseudo_perplexity: str
    compute_dtype: str
    dtype: str  # of the array
    device: str
    versions: dict[str, str]  # of virnucpro and torch
    array_sha256: str
    extras: dict[str, str]  # name -> SHA-256, of those of `EXTRA_ARRAYS` that there are
    shape: list[int]  # [sequences, layers, dim]
    layers: list[int]  # from 1; 0 are the embedded residues
    backend: str  # of the attention
    tokens_per_step: int
    quarantined: list[Quarantined]
    steps: int
    retries: int  # of steps, at half their tokens
    recomputed_float32: int  # sequences
    closeness: dict[str, float] | None = None  # of a coarse number format to float32

    @property
    def dimension(self) -> int:
        """Dimension of an embedding."""
        return self.shape[2]


@dataclass(frozen=True)
class ShardEmbeddings:
    """A shard's array and receipt, checked against each other and against the plan."""

    npy: Path  # the array's file
    receipt: ShardReceipt
    array: npt.NDArray[np.floating[Any]]  # [sequences, layers, dim] float32 or float16, mapped
    quarantined: dict[int, Quarantined]  # by row
    extras: dict[str, npt.NDArray[np.floating[Any]]]  # name -> array, mapped, of `EXTRA_ARRAYS`


@dataclass(frozen=True)
class Execution:
    """What a sample's shards ran on: distinct values, in shard order."""

    device: list[str]
    backend: list[str]
    tokens_per_step: list[int]
    versions: list[dict[str, str]]

    @property
    def differing(self) -> list[str]:
        """The fields in which shards differ."""
        return [field for field, values in vars(self).items() if len(values) > 1]


def read_receipt(path: Path) -> ShardReceipt:
    """Read the receipt of a shard's embeddings.

    Raises:
        InputError: another version of the program wrote it.
        DataError: it is missing, or a field is missing or of another type.
    """
    return read_as(ShardReceipt, path, "embedding receipt", EMBED_FORMAT)


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
    extras = {}
    for name, stated in facts.extras.items():
        path = extra_path(npy, name)
        if name not in EXTRA_ARRAYS or not path.is_file():
            raise DataError(f"{name} is missing, its receipt is there", path=path, hint=_AGAIN)
        _same(npy, f"sha256 of {name}", "the file has", sha256_of(path), "the receipt", stated)
        extras[name] = open_array(path, 3 if name == "residues" else 1)
        length = int(plan.residue_offsets[-1]) if name == "residues" else rows
        _same(npy, name, "the array has", len(extras[name]), "the plan", length)
    return ShardEmbeddings(npy, facts, array, _quarantined(npy, facts, plan), extras)


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


def _quarantined(npy: Path, receipt: ShardReceipt, plan: Plan) -> dict[int, Quarantined]:
    """Return the quarantined sequences by row; a row's key must be the plan's key of that row."""
    listed = {sequence.row: sequence for sequence in receipt.quarantined}
    _same(npy, "quarantined rows", "distinct", len(listed), "listed", len(receipt.quarantined))
    if not listed:
        return {}
    chosen = np.isin(plan.row, np.fromiter(listed, dtype=np.int64))
    keys = dict(zip(plan.row[chosen].tolist(), plan.keys[chosen], strict=True))
    for row, sequence in listed.items():
        planned = keys[row].tobytes().hex() if row in keys else None
        _same(npy, f"key of row {row}", "the plan has", planned, "the receipt", sequence.key)
    return listed


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


def check_agreement(receipts: Sequence[ShardReceipt]) -> Execution:
    """Check that all shards were computed in the same way.

    Weights, layers, pooling, dtypes and dimension must be the same. Device, backend, tokens per
    step and versions may differ, for they only change the last bits; that is logged.

    Args:
        receipts: of at least one verified shard.

    Raises:
        DataError: two shards differ in a field that must agree; both are named.
    """
    first = receipts[0]
    for receipt in receipts[1:]:
        for field in _MUST_AGREE:
            expected, found = getattr(first, field), getattr(receipt, field)
            if found != expected:
                raise DataError(
                    f"{field} differs between shards: {first.shard} has {expected}, "
                    f"{receipt.shard} has {found}",
                    hint="embed all shards of a sample with the same weights and options",
                )
    return Execution(**{field.name: _distinct(field.name, receipts) for field in fields(Execution)})


def _distinct(field: str, receipts: Sequence[ShardReceipt]) -> list[Any]:
    values: list[Any] = []
    for receipt in receipts:
        if getattr(receipt, field) not in values:
            values.append(getattr(receipt, field))
    if len(values) > 1:
        logger.warning(
            "shards differ in %s: %s; values agree within rounding, not bit for bit",
            field,
            ", ".join(map(str, values)),
        )
    return values
