"""Sums over a sample's plans and records, for the reports."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from virnucpro.errors import DataError
from virnucpro.merge.records import iter_numbers
from virnucpro.merge.shards import check_complete
from virnucpro.plan.items import count_windows
from virnucpro.plan.parameters import PlanParameters
from virnucpro.plan.report import Packing, Padding, PlanReport, read_report, share
from virnucpro.sequences.alphabet import SPECIAL_TOKENS
from virnucpro.sequences.manifest import Manifest

__all__ = [
    "AlternativeTotals",
    "NextFitTotal",
    "PlanTotals",
    "RecordSummary",
    "read_plan_reports",
    "shares",
    "summarise_plans",
    "summarise_records",
]

_SUMMED = (
    "sequences",
    "items",
    "tokens",
    "residues",
    "sequence_residues",
    "batches",
    "lower_bound",
    "truncated_sequences",
    "truncated_residues",
    "windowed_sequences",
    "windows",
)


@dataclass(frozen=True)
class NextFitTotal:
    """Packing of all shards with one open batch."""

    batches: int
    computed_tokens: int
    efficiency: float  # real over computed tokens


@dataclass(frozen=True)
class AlternativeTotals:
    """What other ways of making batches would cost, over all shards."""

    next_fit_decreasing: NextFitTotal
    sorted_padding: Padding
    unsorted_padding: Padding


@dataclass(frozen=True)
class PlanTotals:
    """The plans of all shards, added up; the fields are explained at `Packing`."""

    shards: int
    sequences: int
    items: int
    tokens: int
    residues: int
    sequence_residues: int
    batches: int
    lower_bound: int
    truncated_sequences: int
    truncated_residues: int
    windowed_sequences: int
    windows: int
    computed_tokens: int  # of all batches, filled up to the token budget
    efficiency: float
    alternatives: AlternativeTotals


def read_plan_reports(manifest: Manifest, plans_dir: Path) -> list[PlanReport]:
    """Read the efficiency reports of all shards, in the manifest's order.

    Raises:
        DataError: one is missing, damaged, or of other parameters or another split.
        InputError: one has another format number.
    """
    check_complete(manifest.names, plans_dir, (".json",))
    reports: list[PlanReport] = []
    for entry in manifest.shards:
        path = plans_dir / f"{entry.name}.json"
        report = read_report(path)
        reports.append(report)
        found = (report.shard, report.packing.sequences, report.parameters)
        expected = (entry.name, entry.sequences, reports[0].parameters)
        if found != expected:
            raise DataError(
                "is of shard {}, {} sequences, {}".format(*found)
                + ", expected shard {}, {} sequences, {}".format(*expected),
                path=path,
                hint="remove the shard's plan and run again",
            )
    return reports


def summarise_plans(reports: Sequence[PlanReport]) -> PlanTotals:
    """Add up the plans of all shards."""
    packings = [report.packing for report in reports]
    sums = {field: sum(getattr(packing, field) for packing in packings) for field in _SUMMED}
    computed = sum(report.computed_tokens for report in reports)
    others = [packing.alternatives for packing in packings]
    next_fit = sum(other.next_fit_decreasing.batches for other in others)
    next_fit_tokens = next_fit * reports[0].parameters.token_budget
    by_length = sum(other.sorted_padding.computed_tokens for other in others)
    in_order = sum(other.unsorted_padding.computed_tokens for other in others)
    tokens = sums["tokens"]
    return PlanTotals(
        shards=len(reports),
        **sums,
        computed_tokens=computed,
        efficiency=share(tokens, computed),
        alternatives=AlternativeTotals(
            NextFitTotal(next_fit, next_fit_tokens, share(tokens, next_fit_tokens)),
            Padding(by_length, share(tokens, by_length)),
            Padding(in_order, share(tokens, in_order)),
        ),
    )


def shares(planned: Packing | PlanTotals) -> dict[str, float]:
    """Return real over computed tokens of each way of making batches, ``planned`` among them."""
    others = planned.alternatives
    return {
        "planned": planned.efficiency,
        "next_fit_decreasing": others.next_fit_decreasing.efficiency,
        "sorted_padding": others.sorted_padding.efficiency,
        "unsorted_padding": others.unsorted_padding.efficiency,
    }


@dataclass(frozen=True)
class RecordSummary:
    """The accepted records of a sample."""

    lengths: npt.NDArray[np.int64]  # [k] distinct lengths in residues, increasing
    counts: npt.NDArray[np.int64]  # [k] records of each length
    copies: npt.NDArray[np.int64]  # [c] distinct numbers of records per sequence, increasing
    sequences: npt.NDArray[np.int64]  # [c] sequences that occur in that many records
    normalised: int  # records that normalising changed
    replaced: int  # letters that became X

    @property
    def records(self) -> int:
        """Number of records."""
        return int(self.counts.sum())

    @property
    def residues(self) -> int:
        """Number of residues."""
        return int((self.lengths * self.counts).sum())

    def longer(self, max_sequence_length: int) -> int:
        """Count the records that have more residues."""
        return int(self.counts[self.lengths > max_sequence_length].sum())

    def truncated(self, parameters: PlanParameters) -> tuple[int, int]:
        """Count the records of which residues are left out, and those residues."""
        if parameters.long_sequences != "truncate":
            return 0, 0
        limit = parameters.max_sequence_length
        beyond = np.maximum(self.lengths - limit, 0)
        return self.longer(limit), int((beyond * self.counts).sum())

    def tokens(self, parameters: PlanParameters) -> int:
        """Count the tokens that the records would cost if each were computed by itself."""
        limit, windows = parameters.max_sequence_length, np.ones_like(self.lengths)
        if parameters.long_sequences == "window":
            windows = count_windows(self.lengths, limit, parameters.window_overlap)
        each = windows * (np.minimum(self.lengths, limit) + SPECIAL_TOKENS)
        return int((each * self.counts).sum())


def summarise_records(path: Path) -> RecordSummary:
    """Read records.parquet as a stream; counting copies takes some 30 bytes a record.

    Raises:
        DataError: it is missing or damaged.
    """
    lengths: Counter[int] = Counter()
    keys = []
    normalised = replaced = 0
    for block in iter_numbers(path):
        values, counts = np.unique(block.length, return_counts=True)
        lengths.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
        normalised += int(np.count_nonzero(block.normalised))
        replaced += int(block.replaced.sum())
        keys.append(block.key.view(np.uint64)[::2].copy())  # half of a key tells them apart
    ordered = sorted(lengths.items())
    copies, sequences = _count_copies(np.concatenate(keys or [np.empty(0, np.uint64)]))
    return RecordSummary(
        np.array([length for length, _ in ordered], dtype=np.int64),
        np.array([count for _, count in ordered], dtype=np.int64),
        copies,
        sequences,
        normalised,
        replaced,
    )


def _count_copies(
    keys: npt.NDArray[np.uint64],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return distinct numbers of records per sequence, and the sequences of each; sorts `keys`."""
    keys.sort()
    starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1], [True]]))
    sequences = np.bincount(np.diff(starts[: None if len(keys) else 1]))
    copies = np.flatnonzero(sequences)
    return copies, sequences[copies]
