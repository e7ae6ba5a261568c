"""The first half of a split: every record is read, accepted or quarantined, and spooled."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from virnucpro.quarantine import Reason
from virnucpro.sequences.alphabet import (
    CHANGES,
    KNOWN,
    RESIDUES,
    Normalised,
    count_unknown,
    normalise,
    sequence_key,
)
from virnucpro.sequences.body import is_three_letter_code
from virnucpro.sequences.compression import Digest, name_of
from virnucpro.sequences.fasta import WORD_END, Record, read_fasta
from virnucpro.sequences.manifest import InputFile, SplitParameters
from virnucpro.sequences.nucleotides import are_nucleotides, refuse_nucleotides
from virnucpro.sequences.record import NO_FINDINGS, SHOWN
from virnucpro.sequences.spool import PartitionSpool, RecordSpool

__all__ = ["Reader", "RecordIntake", "quarantine_reason"]

_SHOWN = 60  # characters of a header in a quarantine detail
_SHORTEST_ID = 4  # that is recognised in place of its sequence; one residue may be named for itself
_KNOWN_BUT_LEUCINE = KNOWN.replace(b"L", b"")  # what is left tells both: unknown, or leucines
_FEW_LEUCINES = 20  # letters for each; most proteins have more, and no nucleotides have
_SENTENCE = 20  # a word of this many capital letters is taken for residues, not for a name


class Reader(Protocol):
    """Reads the records of a file; see `read_fasta`, which is one."""

    def __call__(
        self,
        path: Path,
        *,
        max_record_residues: int | None,
        whole_header: bool,
        digest: Digest | None,
    ) -> Iterator[Record]:
        """Read the records of one file, in file order."""


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
class RecordIntake:
    """Where the records of all inputs go, and what was counted on the way.

    Attributes:
        parameters: what a record must keep.
        partitions: sequences of the accepted records.
        records: all records.
        passed: is told how many bytes of an input were read, compressed ones where it is.
        reader: reads the records of a file.
        changes: letters changed in accepted records, by kind.
        reasons: quarantined records by reason.
        normalised: accepted records that were changed.
        left_out: what was skipped and is no residue: comment lines, headers of clusters, marks.
        first: place and detail of the first record of each reason.
    """

    parameters: SplitParameters
    partitions: PartitionSpool
    records: RecordSpool
    passed: Callable[[int], object]
    reader: Reader = read_fasta
    changes: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(CHANGES, 0)))
    reasons: Counter[str] = field(default_factory=Counter)
    normalised: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    def read(self, index: int, path: Path) -> InputFile:
        """Read one input.

        Args:
            index: the input's number.
            path: what the reader reads, plain or compressed, or "-".

        Returns:
            The input's entry in the manifest.

        Raises:
            InputError: see the reader and `refuse_nucleotides`.
        """
        raw = _RawBytes(self.passed)
        records: Iterable[Record] = self.reader(
            path,
            max_record_residues=self.parameters.max_record_residues,
            whole_header=self.parameters.ids == "whole_header",
            digest=raw,
        )
        if self.parameters.input_type != "any":
            records = refuse_nucleotides(records)
        before = len(self.records)
        empty: Record | None = None  # the record before, where it is a header alone
        for record in records:
            if empty is not None:
                self._take_empty(empty, index, record)
                empty = None
            if record.residues or record.findings is not NO_FINDINGS:
                self._take(record, index)
            else:
                empty = record
        if empty is not None:
            self._take(empty, index)
        count = len(self.records) - before
        return InputFile(name_of(path), raw.count, raw.sha256.hexdigest(), count)

    def _take_empty(self, empty: Record, file: int, following: Record) -> None:
        """Take a header alone, or drop it where MMseqs2 begins a cluster with it.

        Its FASTA of clusters has the representative's header directly above the record of the first
        member, which is the representative itself.
        """
        is_next = following.line == empty.line + 1
        if is_next and _first_word(empty) == _first_word(following):
            self.left_out["cluster headers"] += 1
        else:
            self._take(empty, file)

    def _take(self, record: Record, file: int) -> None:
        residues = record.residues
        size = len(residues)
        rest = residues.translate(None, _KNOWN_BUT_LEUCINE)
        if (
            size
            and not rest.strip(b"L")
            and record.findings is NO_FINDINGS
            and size != len(record.id)
            and (
                len(rest) * _FEW_LEUCINES > size
                or self.parameters.input_type == "any"
                or not are_nucleotides(residues)
            )
        ):
            # Nearly every record: nothing to decide, nothing to count.
            key = sequence_key(residues)
            self.partitions.add(key, residues)
            self.records.add(record, file, length=size, key=key)
            return
        self._take_unusual(record, file)

    def _take_unusual(self, record: Record, file: int) -> None:
        result = normalise(record.residues)
        residues, replaced = result.residues, result.replaced
        unknown = count_unknown(residues)
        changed = result.changed or record.findings.whitespace > 0 or record.findings.numbers > 0
        self.left_out["comment lines"] += record.findings.comments
        self.left_out["NUL or Ctrl-Z"] += record.findings.marks
        reason, detail = quarantine_reason(record, result, self.parameters)
        if reason:
            self._note(reason, detail, record)
            self.records.add(
                record,
                file,
                length=record.length if record.findings.excess else len(residues),
                replaced=replaced,
                unknown=unknown,
                normalised=changed,
                reason=reason,
                detail=detail,
            )
            return
        key = sequence_key(residues)
        self.partitions.add(key, residues)
        self.records.add(
            record,
            file,
            length=len(residues),
            key=key,
            replaced=replaced,
            unknown=unknown,
            normalised=changed,
        )
        if changed:
            self.normalised += 1
            self.changes.update(result.changes)
            self.changes["whitespace"] += record.findings.whitespace
            self.changes["numbers"] += record.findings.numbers

    def _note(self, reason: str, detail: str, record: Record) -> None:
        """Count a quarantined record, and keep the place of the first of each reason."""
        self.reasons[reason] += 1
        line = record.findings.text_line or record.line
        self.first.setdefault(reason, f"{record.path}, line {line}: {detail}")


def quarantine_reason(
    record: Record, result: Normalised, parameters: SplitParameters
) -> tuple[Reason | None, str]:
    """Say why a record is quarantined.

    Args:
        record: as it was read.
        result: its normalised residues.
        parameters: what it must keep.

    Returns:
        Reason and detail; None and nothing for a record that is accepted.
    """
    length = len(result.residues)
    if record.findings.reason:
        return record.findings.reason, record.findings.detail
    if is_its_id(record):
        return Reason.ID_AS_SEQUENCE, "the id stands in place of the residues"
    if record.findings.text_line:
        return Reason.TEXT, _what_text(record)
    if is_three_letter_code(record.residues):
        return Reason.TEXT, f"three-letter code: {record.residues[:SHOWN].decode()}"
    if record.findings.excess:
        limit = parameters.max_record_residues
        return Reason.TOO_LONG, f"{record.length} letters, more than max_record_residues ({limit})"
    if not length:
        return Reason.EMPTY, _why_empty(record)
    if parameters.input_type != "any" and are_nucleotides(record.residues):
        return Reason.NUCLEOTIDES, "A, C, G, T, U or N are 95% of the letters, or more"
    if result.replaced > parameters.max_invalid_fraction * length:
        return Reason.INVALID_LETTERS, f"{result.replaced} of {length} letters are no amino acids"
    if (unknown := count_unknown(result.residues)) > parameters.max_unknown_fraction * length:
        return Reason.UNKNOWN_RESIDUES, f"{unknown} of {length} residues are X, B, Z, J or replaced"
    return None, ""


def is_its_id(record: Record) -> bool:
    """Whether a record has its id, or all of its header, in place of residues, in any case."""
    name = record.id.casefold()
    if record.findings.text_line:
        found = record.findings.text.casefold()
        header = f"{name} {record.description.casefold()}".strip()
        return (
            record.findings.text_line == record.line + 1
            and not record.residues
            and found in (name[:SHOWN], header[:SHOWN])
        )
    if len(record.residues) != len(name) or len(name) < _SHORTEST_ID:
        return False
    return record.residues.lower() == name.encode("utf-8", "replace")


def _first_word(record: Record) -> str:
    return WORD_END.split(record.id, maxsplit=1)[0]


def _what_text(record: Record) -> str:
    """Say what a text is that stands among the residues, and what to do where that is known."""
    hint = "; chains are given as records of their own" if record.findings.is_chains else ""
    return f"line {record.findings.text_line} is no residues: {record.findings.text}{hint}"


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
