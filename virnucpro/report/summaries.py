"""Sums over a sample's plans, records and traces, for the reports."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from virnucpro.errors import DataError
from virnucpro.files import read_json
from virnucpro.formats import PLAN_FORMAT, TRACE_COLUMNS, check_format, trace_checksum
from virnucpro.merge.receipts import check_complete
from virnucpro.merge.records import iter_lengths
from virnucpro.merge.shards import shard_names
from virnucpro.merge.tables import read_table
from virnucpro.plan.first_fit import SPECIAL_TOKENS
from virnucpro.plan.items import count_windows

__all__ = [
    "PARAMETERS",
    "RecordSummary",
    "Trace",
    "read_plan_reports",
    "read_trace",
    "share",
    "summarise_plans",
    "summarise_records",
    "summarise_traces",
]

PARAMETERS = (
    "token_budget",
    "max_sequence_length",
    "long_sequences",
    "window_overlap",
    "algorithm",
)
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
_PADDED = ("sorted_padding", "unsorted_padding")
_REQUIRED = {"shard", *PARAMETERS, *_SUMMED, "efficiency", "alternatives"}


def read_plan_reports(manifest: dict[str, Any], plans_dir: Path) -> list[dict[str, Any]]:
    """Read the efficiency reports of all shards, in the manifest's order.

    Raises:
        DataError: one is missing, too many, damaged, or of other parameters or another split.
        InputError: one has another format number.
    """
    names = shard_names(manifest)
    check_complete(names, plans_dir, (".json",))
    reports: list[dict[str, Any]] = []
    for name, facts in zip(names, manifest["shards"], strict=True):
        path = plans_dir / f"{name}.json"
        report = read_json(path)
        check_format("plan report", report.get("format"), PLAN_FORMAT, path=path)
        if missing := sorted(_REQUIRED - set(report)):
            raise DataError(f"has no {', '.join(missing)}", path=path, hint="plan again")
        found = {"shard": report["shard"], "sequences": report["sequences"]}
        expected = {"shard": name, "sequences": facts["sequences"]}
        first = reports[0] if reports else report
        for field in PARAMETERS:
            found[field], expected[field] = report[field], first[field]
        if found != expected:
            raise DataError(f"is of {found}, expected {expected}", path=path, hint="plan again")
        reports.append(report)
    return reports


def summarise_plans(reports: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Add up the plans of all shards.

    Returns:
        Totals; ``efficiency`` is real tokens over computed tokens, here and for each alternative.
    """
    totals: dict[str, Any] = {"shards": len(reports)}
    for field in _SUMMED:
        totals[field] = sum(report[field] for report in reports)
    budget, tokens = reports[0]["token_budget"], totals["tokens"]
    totals["computed_tokens"] = totals["batches"] * budget
    totals["efficiency"] = share(tokens, totals["computed_tokens"])
    batches = sum(report["alternatives"]["next_fit_decreasing"]["batches"] for report in reports)
    totals["alternatives"] = {
        "next_fit_decreasing": {
            "batches": batches,
            "computed_tokens": batches * budget,
            "efficiency": share(tokens, batches * budget),
        }
    }
    for name in _PADDED:
        computed = sum(report["alternatives"][name]["computed_tokens"] for report in reports)
        totals["alternatives"][name] = {
            "computed_tokens": computed,
            "efficiency": share(tokens, computed),
        }
    return totals


def share(real: int, computed: int) -> float:
    """Give real over computed, rounded to 6 digits; 0.0 where nothing was computed."""
    return round(real / computed, 6) if computed else 0.0


@dataclass(frozen=True)
class RecordSummary:
    """The accepted records of a sample.

    Attributes:
        lengths: distinct lengths in residues, rising, [k] int64.
        counts: records of each length, [k] int64.
        copies: distinct numbers of records of one sequence, rising, [c] int64.
        sequences: sequences that stand on that many records, [c] int64.
        normalised: records that normalising changed.
        replaced: letters that became X.
    """

    lengths: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]
    copies: npt.NDArray[np.int64]
    sequences: npt.NDArray[np.int64]
    normalised: int
    replaced: int

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

    def truncated(self, max_sequence_length: int, long_sequences: str) -> tuple[int, int]:
        """Count the records of which residues are left out, and those residues."""
        if long_sequences != "truncate":
            return 0, 0
        beyond = np.maximum(self.lengths - max_sequence_length, 0)
        return self.longer(max_sequence_length), int((beyond * self.counts).sum())

    def tokens(self, max_sequence_length: int, long_sequences: str, window_overlap: int) -> int:
        """Count the tokens that the records would cost if each were computed by itself."""
        windows = np.ones_like(self.lengths)
        if long_sequences == "window":
            windows = count_windows(self.lengths, max_sequence_length, window_overlap)
        each = windows * (np.minimum(self.lengths, max_sequence_length) + SPECIAL_TOKENS)
        return int((each * self.counts).sum())


def summarise_records(path: Path) -> RecordSummary:
    """Read records.parquet as a stream; memory is some 30 bytes a record, for counting copies.

    Raises:
        DataError: it is missing or damaged.
    """
    lengths: Counter[int] = Counter()
    keys = []
    normalised = replaced = 0
    for block in iter_lengths(path):
        values, counts = np.unique(block["length"], return_counts=True)
        lengths.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
        normalised += int(np.count_nonzero(block["normalised"]))
        replaced += int(block["replaced"].sum())
        keys.append(block["key"])
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
    """Give the numbers of records of one sequence, and how many sequences have each; sorts keys."""
    keys.sort()
    starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1], [True]]))
    sequences = np.bincount(np.diff(starts[: None if len(keys) else 1]))
    copies = np.flatnonzero(sequences)
    return copies, sequences[copies]


@dataclass(frozen=True)
class Trace:
    """The steps of one shard, in order; all arrays are [steps].

    Attributes:
        shard: the shard's name.
        tokens: int64, real tokens.
        seconds: float64.
        peak_memory_bytes: int64; 0 where the device does not tell.
    """

    shard: str
    tokens: npt.NDArray[np.int64]
    seconds: npt.NDArray[np.float64]
    peak_memory_bytes: npt.NDArray[np.int64]


def read_trace(embeddings_dir: Path, receipt: dict[str, Any]) -> Trace:
    """Read a shard's trace.

    Args:
        embeddings_dir: holds ``{shard}.trace.tsv``.
        receipt: of the shard's embeddings, which knows the number of steps.

    Raises:
        DataError: it is missing or damaged.
    """
    shard = receipt["shard"]
    path = embeddings_dir / f"{shard}.trace.tsv"
    rows = list(read_table(path, TRACE_COLUMNS))
    try:
        if len(rows) != receipt["steps"]:
            raise ValueError(f"it has {len(rows)} steps, the receipt {receipt['steps']}")
        for row in rows:
            line = "\t".join(row[name] for name in TRACE_COLUMNS[:-1])
            if trace_checksum(line) != row["crc32"]:
                raise ValueError(f"the checksum of step {row['step']} is wrong")
        return Trace(
            shard,
            np.array([int(row["tokens"]) for row in rows], dtype=np.int64),
            np.array([float(row["seconds"]) for row in rows], dtype=np.float64),
            np.array([int(row["peak_memory_bytes"]) for row in rows], dtype=np.int64),
        )
    except ValueError as error:
        raise DataError(f"is damaged ({error})", path=path, hint="embed the shard again") from error


def summarise_traces(traces: Sequence[Trace], tokens_per_step: Sequence[int]) -> dict[str, Any]:
    """Add up the traces of all shards.

    Args:
        traces: one a shard.
        tokens_per_step: tokens of the fixed shape of each shard's steps.

    Returns:
        Totals, and ``shards`` with the same of each; ``filled`` is real tokens over those of the
        steps' shapes.
    """
    capacities = [
        len(trace.tokens) * tokens for trace, tokens in zip(traces, tokens_per_step, strict=True)
    ]
    shards = [
        {"shard": trace.shard, **_rate([trace], capacity)}
        for trace, capacity in zip(traces, capacities, strict=True)
    ]
    return {**_rate(traces, sum(capacities)), "shards": shards}


def _rate(traces: Sequence[Trace], capacity: int) -> dict[str, Any]:
    tokens = sum(int(trace.tokens.sum()) for trace in traces)
    seconds = sum(float(trace.seconds.sum()) for trace in traces)
    return {
        "steps": sum(len(trace.tokens) for trace in traces),
        "tokens": tokens,
        "seconds": round(seconds, 4),
        "tokens_per_second": round(tokens / seconds, 1) if seconds else None,
        "filled": share(tokens, capacity),
        # 0 means that the device does not tell.
        "peak_memory_bytes": max(int(trace.peak_memory_bytes.max(initial=0)) for trace in traces)
        or None,
    }
