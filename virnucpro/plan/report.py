"""The efficiency report of a plan: what it costs, and what other ways would cost."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from virnucpro.plan.baselines import (
    next_fit_decreasing_bins,
    sorted_padding_tokens,
    unsorted_padding_tokens,
)
from virnucpro.plan.plan import Plan

__all__ = ["efficiency_report", "length_histogram"]

_STEP = 64
_STEPS_UP_TO = 1024


def efficiency_report(plan: Plan, lengths: NDArray[Any]) -> dict[str, Any]:
    """Report on a plan.

    Args:
        plan: the plan.
        lengths: [sequences] residues of the shard's sequences, before any cut, in the shard's
            order, which is the order of "unsorted".

    Returns:
        Counts (``residues`` are those that are computed, so where windows overlap they count
        twice; ``sequence_residues`` are those of the sequences), the lower bound of batches (all
        tokens over the budget, rounded up), the efficiency (real over computed tokens, 0.0 where
        there is nothing), the alternatives' cost, and the histogram of lengths. Plain numbers and
        strings, the same for the same plan.
    """
    tokens = plan.tokens.astype(np.int64)
    total = int(tokens.sum())
    residues = int((plan.end - plan.start).sum(dtype=np.int64))
    in_order = tokens[np.lexsort((plan.start, plan.row))]
    windows = np.bincount(plan.row)
    left_out = np.asarray(lengths, np.int64)[plan.row] - plan.end
    next_fit = next_fit_decreasing_bins(tokens, plan.token_budget)
    padded = {
        "sorted_padding": sorted_padding_tokens(tokens, plan.token_budget),
        "unsorted_padding": unsorted_padding_tokens(in_order, plan.token_budget),
    }
    return {
        **plan.parameters,
        "content_hash": plan.content_hash,
        "sequences": len(lengths),
        "items": plan.items,
        "tokens": total,
        "residues": residues,
        "sequence_residues": int(lengths.sum(dtype=np.int64)),
        "batches": plan.batches,
        "lower_bound": -(-total // plan.token_budget),
        "efficiency": _share(total, plan.batches * plan.token_budget),
        "truncated_sequences": int(plan.truncated.sum()),
        "truncated_residues": int(left_out[plan.truncated].sum()),
        "windowed_sequences": int(np.count_nonzero(windows > 1)),
        "windows": int(windows[windows > 1].sum()),
        "alternatives": {
            "next_fit_decreasing": {
                "batches": next_fit,
                "efficiency": _share(total, next_fit * plan.token_budget),
            },
            **{
                name: {"computed_tokens": computed, "efficiency": _share(total, computed)}
                for name, computed in padded.items()
            },
        },
        "length_histogram": length_histogram(lengths),
    }


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


def _share(real: int, computed: int) -> float:
    return round(real / computed, 6) if computed else 0.0
