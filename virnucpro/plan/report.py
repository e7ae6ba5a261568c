"""The efficiency report of a plan: what it costs, and what other ways would cost."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from virnucpro.files import read_json, write_json
from virnucpro.formats import PLAN_FORMAT, check_format, parse
from virnucpro.plan.baselines import (
    next_fit_decreasing_bins,
    sorted_padding_tokens,
    unsorted_padding_tokens,
)
from virnucpro.plan.parameters import PlanParameters
from virnucpro.plan.plan import Plan

__all__ = [
    "Alternatives",
    "NextFit",
    "Packing",
    "Padding",
    "PlanReport",
    "efficiency_report",
    "length_histogram",
    "read_report",
    "share",
    "write_report",
]

_STEP = 64
_STEPS_UP_TO = 1024


@dataclass(frozen=True)
class NextFit:
    """Packing with one open batch: the next-fit decreasing of other programs."""

    batches: int
    efficiency: float  # real over computed tokens


@dataclass(frozen=True)
class Padding:
    """Batches in which each item is padded to the longest one."""

    computed_tokens: int  # with padding
    efficiency: float  # real over computed tokens


@dataclass(frozen=True)
class Alternatives:
    """What other ways of making batches at the same token budget would cost."""

    next_fit_decreasing: NextFit
    sorted_padding: Padding
    unsorted_padding: Padding  # in the shard's order


@dataclass(frozen=True)
class Packing:
    """What a shard's plan holds and costs; the same for the same plan."""

    content_hash: str  # of the plan
    sequences: int
    items: int
    tokens: int  # of the items, BOS and EOS included
    residues: int  # that are computed: where windows overlap they count twice
    sequence_residues: int
    batches: int
    lower_bound: int  # fewest possible batches: tokens over budget, rounded up
    efficiency: float  # real over computed tokens; 0.0 where there is nothing
    truncated_sequences: int
    truncated_residues: int  # left out
    windowed_sequences: int
    windows: int  # of these sequences
    alternatives: Alternatives


@dataclass(frozen=True)
class PlanReport:
    """The report of one shard's plan."""

    shard: str
    parameters: PlanParameters
    packing: Packing
    length_histogram: list[list[int]]  # see `length_histogram`

    @property
    def computed_tokens(self) -> int:
        """Tokens of all batches, filled up to the token budget."""
        return self.packing.batches * self.parameters.token_budget


def write_report(path: Path, report: PlanReport) -> None:
    """Write a report as one flat JSON object; equal reports give equal bytes.

    Raises:
        OSError: writing failed.
    """
    value = {
        "format": PLAN_FORMAT,
        "shard": report.shard,
        **asdict(report.parameters),
        **asdict(report.packing),
        "length_histogram": report.length_histogram,
    }
    write_json(path, value, sealed=True)


def read_report(path: Path) -> PlanReport:
    """Read a report that `write_report` wrote.

    Raises:
        DataError: it is missing or damaged.
        InputError: it has another format number.
    """
    value = read_json(path)
    check_format("plan report", value.get("format"), PLAN_FORMAT, path=path)
    return parse(PlanReport, {**value, "parameters": value, "packing": value}, path)


def efficiency_report(shard: str, plan: Plan, lengths: NDArray[Any]) -> PlanReport:
    """Report on a plan.

    Args:
        shard: the shard's name.
        plan: the plan.
        lengths: [sequences] residues of the shard's sequences, before any cut, in the shard's
            order, which is the order of "unsorted".
    """
    tokens = plan.tokens.astype(np.int64)
    total, budget = int(tokens.sum()), plan.token_budget
    windows = np.bincount(plan.row)
    left_out = np.asarray(lengths, np.int64)[plan.row] - plan.end
    packing = Packing(
        content_hash=plan.content_hash,
        sequences=len(lengths),
        items=plan.items,
        tokens=total,
        residues=int((plan.end - plan.start).sum(dtype=np.int64)),
        sequence_residues=int(lengths.sum(dtype=np.int64)),
        batches=plan.batches,
        lower_bound=-(-total // budget),
        efficiency=share(total, plan.batches * budget),
        truncated_sequences=int(plan.truncated.sum()),
        truncated_residues=int(left_out[plan.truncated].sum()),
        windowed_sequences=int(np.count_nonzero(windows > 1)),
        windows=int(windows[windows > 1].sum()),
        alternatives=_alternatives(plan, tokens, total),
    )
    return PlanReport(shard, plan.parameters, packing, length_histogram(lengths))


def _alternatives(plan: Plan, tokens: NDArray[np.int64], total: int) -> Alternatives:
    budget = plan.token_budget
    next_fit = next_fit_decreasing_bins(tokens, budget)
    by_length = sorted_padding_tokens(tokens, budget)
    in_order = unsorted_padding_tokens(tokens[np.lexsort((plan.start, plan.row))], budget)
    return Alternatives(
        NextFit(next_fit, share(total, next_fit * budget)),
        Padding(by_length, share(total, by_length)),
        Padding(in_order, share(total, in_order)),
    )


def length_histogram(lengths: NDArray[Any]) -> list[list[int]]:
    """Count sequences by length: [upper edge (included), count], up to the longest sequence.

    The edges are 64, 128, ... 1,024, then doubled, for every shard, so that counts can be added.
    """
    longest = int(lengths.max(initial=0))
    edges = list(range(_STEP, _STEPS_UP_TO + _STEP, _STEP))
    while edges[-1] < longest:
        edges.append(2 * edges[-1])
    counts = np.bincount(np.searchsorted(edges, lengths), minlength=len(edges))
    return [list(pair) for pair in zip(edges, counts.tolist(), strict=True)]


def share(real: int, computed: int) -> float:
    """Return real over computed tokens, to 6 digits; 0.0 where nothing is computed."""
    return round(real / computed, 6) if computed else 0.0
