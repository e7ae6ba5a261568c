"""The first half of a split: read every record, judge it, and put it into the spools."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from virnucpro.sequences.alphabet import (
    CHANGES,
    RESIDUES,
    Normalised,
    is_normal,
    normalise,
    sequence_key,
)
from virnucpro.sequences.compression import name_of
from virnucpro.sequences.fasta import Record, read_fasta
from virnucpro.sequences.nucleotides import refuse_nucleotides
from virnucpro.sequences.spool import PartitionSpool, RecordSpool

__all__ = ["Intake", "Limits", "judge"]

_SHOWN = 60  # characters of a header in a quarantine detail
_SENTENCE = 20  # a word of this many capital letters is taken for residues, not for a name


@dataclass(frozen=True)
class Limits:
    """What a record must keep to be accepted.

    Attributes:
        max_invalid_fraction: letters replaced by X, as a fraction of the residues.
        max_record_residues: letters of a record in the file.
    """

    max_invalid_fraction: float
    max_record_residues: int


@dataclass
class _RawBytes:
    """Counts and hashes an input as it passes."""

    passed: Callable[[int], object]
    count: int = 0
    sha256: Any = field(default_factory=hashlib.sha256)

    def update(self, data: bytes, /) -> None:
        self.count += len(data)
        self.sha256.update(data)
        self.passed(len(data))


@dataclass
class Intake:
    """Where the records of all inputs go, and what was counted on the way.

    Attributes:
        limits: what a record must keep.
        partitions: sequences of the accepted records.
        records: all records.
        passed: is told how many bytes of an input were read, compressed ones where it is.
        changes: letters changed in accepted records, by kind.
        reasons: quarantined records by reason.
        normalised: accepted records that were changed.
    """

    limits: Limits
    partitions: PartitionSpool
    records: RecordSpool
    passed: Callable[[int], object]
    changes: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(CHANGES, 0)))
    reasons: Counter[str] = field(default_factory=Counter)
    normalised: int = 0

    def read(self, index: int, path: Path, *, nucleotides: bool) -> dict[str, Any]:
        """Read one input.

        Args:
            index: the input's number.
            path: FASTA, plain or compressed, or "-".
            nucleotides: accept what looks like nucleotides.

        Returns:
            The input's entry in the manifest.

        Raises:
            InputError: see `read_fasta` and `refuse_nucleotides`.
        """
        raw = _RawBytes(self.passed)
        records: Iterable[Record] = read_fasta(
            path, max_record_residues=self.limits.max_record_residues, digest=raw
        )
        if not nucleotides:
            records = refuse_nucleotides(records)
        before = len(self.records)
        for record in records:
            self._take(record, index)
        return {
            "path": name_of(path),
            "bytes": raw.count,
            "sha256": raw.sha256.hexdigest(),
            "records": len(self.records) - before,
        }

    def _take(self, record: Record, file: int) -> None:
        residues = record.residues
        if is_normal(residues) and not record.excess and not record.whitespace:
            # Nearly every record: nothing to judge, nothing to count.
            key = sequence_key(residues)
            self.partitions.add(key, residues)
            self.records.add(record, file, length=len(residues), key=key)
            return
        self._take_unusual(record, file)

    def _take_unusual(self, record: Record, file: int) -> None:
        result = normalise(record.residues)
        residues, replaced = result.residues, result.replaced
        changed = result.changed or record.whitespace > 0
        if record.excess or replaced or not residues:
            reason, detail = judge(record, result, self.limits)
        else:
            reason = detail = ""
        if reason:
            self.reasons[reason] += 1
            self.records.add(
                record,
                file,
                length=record.length if record.excess else len(residues),
                replaced=replaced,
                normalised=changed,
                reason=reason,
                detail=detail,
            )
            return
        key = sequence_key(residues)
        self.partitions.add(key, residues)
        self.records.add(
            record, file, length=len(residues), key=key, replaced=replaced, normalised=changed
        )
        if changed:
            self.normalised += 1
            self.changes.update(result.changes)
            self.changes["whitespace"] += record.whitespace


def judge(record: Record, result: Normalised, limits: Limits) -> tuple[str, str]:
    """Say why a record is quarantined.

    Args:
        record: as it was read.
        result: its normalised residues.
        limits: what it must keep.

    Returns:
        Reason and detail; both empty for a record that is accepted.
    """
    length = len(result.residues)
    if record.excess:
        limit = limits.max_record_residues
        return "too_long", f"{record.length} letters, more than max_record_residues ({limit})"
    if not length:
        return "empty", _why_empty(record)
    if result.replaced > limits.max_invalid_fraction * length:
        return "invalid_letters", f"{result.replaced} of {length} letters are no amino acids"
    return "", ""


def _why_empty(record: Record) -> str:
    if record.residues:
        return f"only gaps or stops: {record.residues[:_SHOWN].decode('ascii', 'replace')}"
    words = record.description.split()
    last = words[-1].rstrip("*") if words else ""
    if last and not last.strip(RESIDUES) and (len(words) == 1 or len(last) >= _SENTENCE):
        return (
            f"no residues below the header, which seems to hold them ({last[:_SHOWN]}): "
            "put them on a line of their own"
        )
    return "no residues below the header"
