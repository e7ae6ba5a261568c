"""Sequences of FASTA files, or of a planned shard, as a map-style data set."""

from __future__ import annotations

import logging
from array import array
from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from virnucpro.data.packing import SequenceDict
from virnucpro.errors import InputError
from virnucpro.plan.items import key_array
from virnucpro.plan.plan import Plan, check_plan_fits
from virnucpro.sequences.alphabet import normalise
from virnucpro.sequences.fasta import read_fasta
from virnucpro.sequences.shards import read_shard

__all__ = ["SequenceDataset"]

logger = logging.getLogger(__name__)


class SequenceDataset(Dataset[SequenceDict]):
    """Items ``{'id': str, 'sequence': str}`` of FASTA files or of a planned shard.

    The files are read once. All residues are kept in one block of bytes, so an item costs its
    letters and a few numbers; each worker of a data loader holds a copy.

    Without a plan the items are the records in input order, normalised as `virnucpro split` does
    (see `virnucpro.sequences.alphabet.normalise`). With a plan they are the plan's items in batch
    order: the id is the sequence's key in hexadecimal, and 'truncated' is True where it was cut.

    Args:
        fasta: a FASTA file or several, read one after the other; with a plan, the shard.
        plan: the shard's plan.

    Raises:
        InputError: a file cannot be read as FASTA, a record has no residues, an id comes twice, or
            there is no record at all; with a plan, several files.
        DataError: the shard is damaged, or the plan was made of another.
    """

    def __init__(
        self, fasta: str | Path | Sequence[str | Path], *, plan: Plan | None = None
    ) -> None:
        paths = [fasta] if isinstance(fasta, str | Path) else list(fasta)
        self.plan = plan
        if plan is None:
            self._ids, self._residues, ends = _read_records([Path(path) for path in paths])
            self._starts, self._ends = np.concatenate([[0], ends[:-1]]), ends
        else:
            if len(paths) != 1:
                raise InputError(f"a plan belongs to one shard, but {len(paths)} files were given")
            self._residues, self._starts = _read_planned(Path(paths[0]), plan)
            self._ends = self._starts + plan.end - plan.start

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> SequenceDict:
        residues = self._residues[self._starts[index] : self._ends[index]].decode("ascii")
        if self.plan is None:
            return {"id": self._ids[index], "sequence": residues}
        item = {
            "id": self.plan.keys[index].tobytes().hex(),
            "sequence": residues,
            "pooling_span": self._pooling_spans[index],
        }
        return {**item, "truncated": True} if self.plan.truncated[index] else item

    @cached_property
    def _pooling_spans(self) -> NDArray[np.int64]:
        """Residues that each item of the plan stands for, [items, 2], counted in the item."""
        assert self.plan is not None  # noqa: S101
        spans: NDArray[np.int64] = np.stack(self.plan.owned_spans, 1) - self.plan.start[:, None]
        return spans

    @property
    def ids(self) -> list[str]:
        """Ids of the items, [items]."""
        if self.plan is None:
            return self._ids
        return [key.tobytes().hex() for key in self.plan.keys]

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Residues of the items, [items]."""
        residues: NDArray[np.int64] = self._ends - self._starts
        return residues

    @property
    def planned_batches(self) -> list[list[int]] | None:
        """For each batch of the plan the numbers of its items; None without a plan."""
        if self.plan is None:
            return None
        offsets = self.plan.batch_offsets.tolist()
        return [list(range(first, end)) for first, end in pairwise(offsets)]


def _read_records(paths: Sequence[Path]) -> tuple[list[str], bytes, NDArray[np.int64]]:
    """Read and normalise records: ids, all residues end to end, and where each sequence ends."""
    numbers: dict[str, int] = {}
    residues = bytearray()
    ends = array("q")
    changed = replaced = 0
    for path in paths:
        for record in read_fasta(path):
            if record.id in numbers:
                raise InputError(
                    f"id {record.id!r} was used before, by record {numbers[record.id] + 1}",
                    path=record.path,
                    line=record.line,
                    hint="give each sequence its own id",
                )
            if record.findings.text_line:
                raise InputError(
                    f"sequence {record.id!r} has text among its residues: {record.findings.text}",
                    path=record.path,
                    line=record.findings.text_line,
                    hint="remove the text, or run `virnucpro split`, which sets the record aside",
                )
            normalised = normalise(record.residues)
            if not normalised.residues:
                raise InputError(
                    f"sequence {record.id!r} has no residues",
                    path=record.path,
                    line=record.line,
                    hint="remove the record, or run `virnucpro split`, which sets it aside",
                )
            changed += normalised.changed or bool(
                record.findings.whitespace or record.findings.numbers
            )
            replaced += normalised.replaced
            numbers[record.id] = len(ends)
            residues += normalised.residues
            ends.append(len(residues))
    if not numbers:
        raise InputError(f"no sequence in {', '.join(map(str, paths)) or 'no file'}")
    if changed:
        logger.warning(
            "%d of %d sequences were normalised, %d letters became X",
            changed,
            len(numbers),
            replaced,
        )
    return list(numbers), bytes(residues), np.array(ends, np.int64)


def _read_planned(path: Path, plan: Plan) -> tuple[bytes, NDArray[np.int64]]:
    """Read a shard and check its plan: all residues end to end, and where each item starts."""
    shard = read_shard(path)
    lengths = np.fromiter(map(len, shard.residues), np.int64, len(shard.residues))
    check_plan_fits(plan, key_array(shard.keys), lengths)
    starts = np.cumsum(lengths) - lengths
    return b"".join(shard.residues), starts[plan.row] + plan.start
