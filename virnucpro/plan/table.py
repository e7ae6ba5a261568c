"""A plan as a table: the items of one shard in batch order, in memory and as a Parquet file.

The content hash covers the parameters and all columns, so a file that was damaged or changed by
hand is found, and equal plans are equal on every machine.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from virnucpro.errors import DataError
from virnucpro.files import write_bytes
from virnucpro.formats import PLAN_FORMAT, check_format, parse
from virnucpro.plan.first_fit import batch_offsets
from virnucpro.plan.items import owned_spans
from virnucpro.plan.parameters import PlanParameters
from virnucpro.sequences.alphabet import KEY_BYTES, SPECIAL_TOKENS

__all__ = [
    "SCHEMA",
    "Plan",
    "content_hash",
    "parse_plan",
    "plan_bytes",
    "read_plan",
    "write_plan",
]

SCHEMA = pa.schema(
    [
        pa.field("batch", pa.int32(), nullable=False),
        pa.field("row", pa.int32(), nullable=False),
        pa.field("key", pa.binary(KEY_BYTES), nullable=False),
        pa.field("start", pa.int32(), nullable=False),
        pa.field("end", pa.int32(), nullable=False),
        pa.field("tokens", pa.int32(), nullable=False),
        pa.field("truncated", pa.bool_(), nullable=False),
    ]
)
_METADATA = b"virnucpro"
_REMAKE = "remove the file so that it is made again"


@dataclass(frozen=True, eq=False)
class Plan:
    """The items of a shard in batch order."""

    parameters: PlanParameters
    batch: NDArray[np.int32]  # [items] batch numbers: 0, 0, ..., 1, ...
    row: NDArray[np.int32]  # [items] numbers of the sequences in the shard FASTA
    start: NDArray[np.int32]  # [items] first residue in the sequence, from 0
    end: NDArray[np.int32]  # [items] one past the last residue
    truncated: NDArray[np.bool_]  # [items] whether the rest of the sequence is not computed
    keys: NDArray[np.uint8]  # [items, 16] of the sequences
    content_hash: str  # see `content_hash`

    @property
    def token_budget(self) -> int:
        """Tokens that a batch holds."""
        return self.parameters.token_budget

    @property
    def max_sequence_length(self) -> int:
        """Residues that an item has at most."""
        return self.parameters.max_sequence_length

    @property
    def items(self) -> int:
        """Number of items."""
        return len(self.batch)

    @property
    def sequences(self) -> int:
        """Number of sequences: each has an item, so the rows are 0 to the largest."""
        return int(self.row.max()) + 1 if self.items else 0

    @property
    def batches(self) -> int:
        """Number of batches."""
        return int(self.batch[-1]) + 1 if self.items else 0

    @property
    def tokens(self) -> NDArray[np.int32]:
        """Tokens of each item, [items]: its residues, BOS and EOS."""
        return self.end - self.start + np.int32(SPECIAL_TOKENS)

    @property
    def batch_offsets(self) -> NDArray[np.int64]:
        """Where each batch starts among the items, [batches + 1]."""
        return batch_offsets(self.batch)

    @cached_property
    def windows(self) -> NDArray[np.int64]:
        """Number of items of each item's sequence, [items]; 1 for one that is not in windows."""
        windows: NDArray[np.int64] = np.bincount(self.row)[self.row]
        return windows

    @cached_property
    def owned_spans(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The residues that each item stands for, see `virnucpro.plan.items.owned_spans`."""
        return owned_spans(self.row, self.start, self.end)

    @cached_property
    def residue_offsets(self) -> NDArray[np.int64]:
        """Where each sequence's residues start among those of all sequences, [sequences + 1].

        Only residues that an item stands for are counted, not those that were cut off.
        """
        first, end = self.owned_spans
        lengths = np.zeros(self.sequences + 1, np.int64)
        np.add.at(lengths, self.row + 1, end - first)
        return np.cumsum(lengths)


def plan_bytes(plan: Plan) -> bytes:
    """Return a plan as the bytes of a Parquet file; equal plans give equal bytes."""
    columns: dict[str, NDArray[Any]] = {
        "batch": plan.batch,
        "row": plan.row,
        "key": plan.keys,
        "start": plan.start,
        "end": plan.end,
        "tokens": plan.tokens,
        "truncated": plan.truncated,
    }
    arrays = [_to_arrow(columns[field.name], field.type) for field in SCHEMA]
    metadata = {**plan.parameters.as_json(), "content_hash": plan.content_hash}
    schema = SCHEMA.with_metadata({_METADATA: json.dumps(metadata, sort_keys=True)})
    buffer = pa.BufferOutputStream()
    table = pa.Table.from_arrays(arrays, schema=schema)
    pq.write_table(table, buffer, compression="zstd", compression_level=3)
    content: bytes = buffer.getvalue().to_pybytes()
    return content


def write_plan(plan: Plan, path: Path) -> None:
    """Write a plan as Parquet.

    Raises:
        OSError: writing failed.
    """
    write_bytes(path, plan_bytes(plan))


def read_plan(path: Path) -> Plan:
    """Read a plan and verify it.

    Raises:
        DataError: the file is missing or damaged, is not a plan, or was changed.
        InputError: it has another format number.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise DataError("the plan is missing", path=path) from None
    return parse_plan(content, path)


def parse_plan(content: bytes, path: Path) -> Plan:
    """Make a plan of its file's bytes and verify it; as `read_plan`, with `path` for messages."""
    try:
        table = pq.ParquetFile(pa.BufferReader(content)).read()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"is not a readable plan ({error})", path=path, hint=_REMAKE) from error
    parameters, stated_hash = _read_metadata(table.schema, path)
    if not table.schema.equals(SCHEMA):
        raise DataError("does not have a plan's columns", path=path, hint=_REMAKE)
    if any(table[name].null_count for name in table.column_names):
        raise DataError("has empty cells", path=path, hint=_REMAKE)
    values: dict[str, Any] = {
        name: _to_numpy(table[name].combine_chunks()) for name in table.column_names
    }
    tokens, keys = values.pop("tokens"), values.pop("key")
    plan = Plan(parameters, **values, keys=keys, content_hash=stated_hash)
    if problem := _problem(plan, tokens):
        raise DataError(f"the plan is damaged: {problem}", path=path, hint=_REMAKE)
    return plan


# Through the buffers: Arrow's own conversions load pandas where it is installed, half a second that
# every shard would wait for.


def _to_arrow(values: NDArray[Any], kind: pa.DataType) -> pa.Array:
    """Return a column, [items] or [items, bytes of a key], as an Arrow array."""
    packed = np.packbits(values, bitorder="little") if values.dtype == np.bool_ else values
    buffer = pa.py_buffer(np.ascontiguousarray(packed))
    return pa.Array.from_buffers(kind, len(values), [None, buffer])


def _to_numpy(column: pa.Array) -> NDArray[Any]:
    """Return an Arrow array of a plan as [items], or [items, bytes of a key]."""
    first, end = column.offset, column.offset + len(column)
    raw = np.frombuffer(column.buffers()[1] or b"", np.uint8)
    if column.type == pa.bool_():
        return np.unpackbits(raw, bitorder="little")[first:end].astype(np.bool_)
    width = column.type.byte_width
    cells = raw[first * width : end * width]
    return cells.view(np.int32) if column.type == pa.int32() else cells.reshape(-1, width)


def _read_metadata(schema: pa.Schema, path: Path) -> tuple[PlanParameters, str]:
    """Return a plan's parameters and the content hash that its file states."""
    try:
        metadata = json.loads((schema.metadata or {})[_METADATA])
        check_format("plan", metadata["format"], PLAN_FORMAT, path=path)
        stated = str(metadata.pop("content_hash"))
        parameters = parse(PlanParameters, metadata, path)
        if parameters.as_json() != metadata:
            raise ValueError("it has other entries")
    except (KeyError, TypeError, ValueError, DataError) as error:
        raise DataError("does not say how it was planned", path=path, hint=_REMAKE) from error
    return parameters, stated


def _problem(plan: Plan, tokens: NDArray[np.int32]) -> str | None:
    """Say what is wrong with a plan that was read; None for nothing."""
    if plan.content_hash != content_hash(plan.parameters, _columns(plan)):
        return "its content hash is wrong"
    steps = np.diff(plan.batch, prepend=0)
    if plan.items and (plan.batch[0] != 0 or steps.min() < 0 or steps.max() > 1):
        return "its batches are not numbered 0, 1, ... in order"
    if not np.array_equal(tokens, plan.tokens):
        return "its tokens are not its residues and two"
    if plan.items and min(plan.row.min(), plan.start.min()) < 0:
        return "a row or a start is negative"
    residues = plan.end.astype(np.int64) - plan.start
    if plan.items and not 1 <= residues.min() <= residues.max() <= plan.max_sequence_length:
        return f"an item does not have 1 to {plan.max_sequence_length} residues"
    if int(np.bincount(plan.batch, plan.tokens).max(initial=0)) > plan.token_budget:
        return f"a batch has more than {plan.token_budget} tokens"
    return None


def _columns(plan: Plan) -> tuple[NDArray[Any], ...]:
    return plan.batch, plan.row, plan.start, plan.end, plan.truncated, plan.keys


def content_hash(parameters: PlanParameters, columns: Sequence[NDArray[Any]]) -> str:
    """Hash a plan: BLAKE2b-128 over its parameters and its columns' bytes, in hexadecimal."""
    encoded = json.dumps(parameters.as_json(), sort_keys=True).encode()
    digest = hashlib.blake2b(encoded, digest_size=16)
    for column in columns:
        digest.update(np.ascontiguousarray(column).data)
    return digest.hexdigest()
