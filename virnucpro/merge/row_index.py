"""Where each record's embedding is in the shards."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from virnucpro.errors import DataError
from virnucpro.merge.records import RecordKeys
from virnucpro.plan.plan import Plan

__all__ = ["RowIndex", "index_shard"]

_AGAIN = "remove the sample's shards and plans and run again"


@dataclass(frozen=True)
class RowIndex:
    """Where each record's embedding is, and what was computed for it, in input order."""

    shard: npt.NDArray[np.int32]  # [records] shard numbers
    row: npt.NDArray[np.int32]  # [records] rows of the shards' arrays
    tokens: npt.NDArray[np.int32]  # [records] tokens that were computed
    windows: npt.NDArray[np.int32]  # [records] in how many items the sequence was computed
    # [records, 2] where its residues start and end among those of all sequences that have an
    # embedding, shard after shard
    residues: npt.NDArray[np.int64]
    truncated: npt.NDArray[np.bool_]  # [records] whether residues were left out
    quarantined: npt.NDArray[np.bool_]  # [records] whether the row holds no embedding
    close: npt.NDArray[np.bool_]  # [records] whether the row is of a close request, from a store

    @classmethod
    def empty(cls, shards: npt.NDArray[np.int32]) -> RowIndex:
        """Make room for the records of these shards; memory is taken as it is filled."""
        n = len(shards)
        return cls(
            shards,
            np.zeros(n, np.int32),
            np.zeros(n, np.int32),
            np.zeros(n, np.int32),
            np.zeros((n, 2), np.int64),
            np.zeros(n, np.bool_),
            np.zeros(n, np.bool_),
            np.zeros(n, np.bool_),
        )


class _Sequences(NamedTuple):
    """The sequences of a plan, by row."""

    keys: npt.NDArray[np.bytes_]  # of 16 bytes, increasing
    ends: npt.NDArray[np.int64]  # one past the last residue that is computed
    tokens: npt.NDArray[np.int64]  # of all items
    truncated: npt.NDArray[np.bool_]


def index_shard(
    name: str,
    plan: Plan,
    quarantined: Collection[int],
    records: RecordKeys,
    chosen: npt.NDArray[np.int64],
    index: RowIndex,
    first_residue: int | None = None,
    close: Collection[int] = (),
) -> int | None:
    """Find the rows of a shard's records by their keys, and fill in their `index`.

    Args:
        name: the shard's name, for messages.
        plan: the shard's plan.
        quarantined: rows of the shard without an embedding.
        records: all records.
        chosen: numbers of the shard's records.
        index: filled in at `chosen`.
        first_residue: how many residues the shards before have; None where residues were not kept.
        close: rows of the shard that are of a close request.

    Returns:
        How many residues the shards up to this one have; None where they were not kept.

    Raises:
        DataError: plan and records do not hold the same sequences.
    """
    sequences = _by_row(name, plan)
    row = _find_rows(name, sequences.keys, records.keys[chosen])
    _check_lengths(name, sequences, row, records.lengths, chosen)
    index.row[chosen] = row
    index.tokens[chosen] = sequences.tokens[row]
    index.windows[chosen] = np.bincount(plan.row)[row]
    index.truncated[chosen] = sequences.truncated[row]
    index.quarantined[chosen] = np.isin(row, np.fromiter(quarantined, dtype=np.int64))
    index.close[chosen] = np.isin(row, np.fromiter(close, dtype=np.int64))
    if first_residue is None:
        return None
    kept = np.diff(plan.residue_offsets)
    kept[list(quarantined)] = 0
    residue_ends = first_residue + np.cumsum(kept)
    index.residues[chosen] = np.stack([residue_ends - kept, residue_ends], axis=1)[row]
    return int(residue_ends[-1]) if len(kept) else first_residue


def _by_row(name: str, plan: Plan) -> _Sequences:
    rows = int(np.count_nonzero(np.bincount(plan.row)))
    if plan.items and int(plan.row.max()) != rows - 1:
        raise DataError(
            f"shard {name}: the plan has items of {rows} of {plan.row.max() + 1} rows", hint=_AGAIN
        )
    # A fixed-size byte string compares in numpy as if padded with NUL, so a key that ends in NUL
    # keeps its place.
    keys = np.zeros(rows, dtype="S16")
    keys[plan.row] = np.ascontiguousarray(plan.keys).view("S16").reshape(-1)
    ends, tokens = np.zeros(rows, np.int64), np.zeros(rows, np.int64)
    np.maximum.at(ends, plan.row, plan.end)
    np.add.at(tokens, plan.row, plan.tokens)
    truncated = np.zeros(rows, np.bool_)
    truncated[plan.row[plan.truncated]] = True
    if not (keys[1:] > keys[:-1]).all():
        raise DataError(f"shard {name}: the plan's keys are not increasing by row", hint=_AGAIN)
    return _Sequences(keys, ends, tokens, truncated)


def _find_rows(
    name: str, keys: npt.NDArray[np.bytes_], of_records: npt.NDArray[np.bytes_]
) -> npt.NDArray[np.int64]:
    """Return the row of each record's key; each key must be that of a record, and no other."""
    row = np.searchsorted(keys, of_records)
    found = row < len(keys)
    found[found] = keys[row[found]] == of_records[found]
    unused = np.ones(len(keys), np.bool_)
    unused[row[found]] = False
    if not found.all() or unused.any():
        raise DataError(
            f"shard {name}: records and plan do not hold the same sequences: "
            f"{np.count_nonzero(~found)} records are not in the plan{_hex(of_records[~found])}, "
            f"{np.count_nonzero(unused)} sequences of the plan are in no record"
            f"{_hex(keys[unused])}",
            hint=_AGAIN,
        )
    return row


def _check_lengths(
    name: str,
    sequences: _Sequences,
    row: npt.NDArray[np.int64],
    lengths: npt.NDArray[np.int32],
    chosen: npt.NDArray[np.int64],
) -> None:
    """Check each record's length against its plan: equal, or greater where it was truncated."""
    found, ends = lengths[chosen], sequences.ends[row]
    wrong = np.flatnonzero(np.where(sequences.truncated[row], found <= ends, found != ends))
    if len(wrong):
        first = wrong[0]
        raise DataError(
            f"shard {name}: {len(wrong)} records have another length than their plan, the first: "
            f"record {chosen[first]} has {found[first]} residues, the plan ends at {ends[first]}",
            hint=_AGAIN,
        )


def _hex(keys: npt.NDArray[Any]) -> str:
    if not len(keys):
        return ""
    examples = ", ".join(bytes(key).ljust(16, b"\0").hex() for key in keys[:10])
    return f" ({examples}{', ...' if len(keys) > 10 else ''})"
