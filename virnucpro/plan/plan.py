"""Making plans: which items of a shard run together in which batch.

An item is a part (key, start, end) of one sequence: all of it, its N-terminal part, or a window. A
plan depends on nothing but the sequences' keys and lengths and the parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from virnucpro.errors import DataError, InputError
from virnucpro.plan.first_fit import batch_offsets, first_fit_decreasing
from virnucpro.plan.items import Items, cut_items, increasing, key_array
from virnucpro.plan.parameters import PlanParameters
from virnucpro.plan.table import (
    Plan,
    content_hash,
    parse_plan,
    plan_bytes,
    read_plan,
    write_plan,
)
from virnucpro.sequences.alphabet import SPECIAL_TOKENS

__all__ = [
    "Plan",
    "check_plan_fits",
    "make_plan",
    "pack_missing",
    "parse_plan",
    "plan_bytes",
    "read_plan",
    "replan",
    "write_plan",
]


def make_plan(
    keys: Sequence[str] | NDArray[np.uint8],
    lengths: NDArray[Any],
    parameters: PlanParameters,
) -> Plan:
    """Pack the sequences of a shard: First-Fit Decreasing, ties by key, then by start.

    Args:
        keys: [sequences] keys in the shard's order, which is increasing: hexadecimal, or
            uint8 [sequences, 16].
        lengths: [sequences] residues, at least 1 each.
        parameters: how to cut and pack them.

    Returns:
        The plan.

    Raises:
        InputError: the parameters do not go together.
        ValueError: the keys are not increasing, or a sequence is empty.
    """
    parameters.check()
    by_row = key_array(keys)
    lengths = np.asarray(lengths, np.int64)
    if len(by_row) != len(lengths):
        raise ValueError(f"{len(by_row)} keys, but {len(lengths)} lengths")
    if lengths.size and lengths.min() < 1:
        raise ValueError(f"sequence {int(lengths.argmin())} is empty")
    if not increasing(by_row):
        raise ValueError("the keys of a shard must be sorted and distinct")
    items = cut_items(lengths, parameters)
    return _pack(parameters, items, by_row[items.row])


def replan(plan: Plan, token_budget: int) -> Plan:
    """Pack a plan's items at another budget; it equals the plan made at that budget.

    Raises:
        InputError: an item costs more than the budget.
    """
    longest = int(plan.tokens.max(initial=0))
    if longest > token_budget:
        raise InputError(
            f"the plan has an item of {longest} tokens, more than the token budget of "
            f"{token_budget}",
            hint="raise the token budget, or plan with a smaller maximum sequence length",
        )
    # Items of one length stand in the order of ties already: first fit never puts the later of two
    # into an earlier batch.
    items = Items(
        row=plan.row.astype(np.int64),
        start=plan.start.astype(np.int64),
        end=plan.end.astype(np.int64),
        truncated=plan.truncated,
    )
    return _pack(replace(plan.parameters, token_budget=token_budget), items, plan.keys)


def pack_missing(
    plan: Plan, known: NDArray[np.bool_], token_budget: int
) -> list[NDArray[np.int64]]:
    """Pack the items of those sequences alone whose vectors are not known yet.

    The plan itself stays that of all sequences: its hash is in the results, which must not tell
    whether there was a store.

    Args:
        plan: of all sequences of a shard.
        known: [sequences] whether a sequence's vector is known.
        token_budget: tokens that a batch holds.

    Returns:
        The item numbers of each batch, as the plan counts items.
    """
    items = np.flatnonzero(~known[plan.row])
    order, batch = first_fit_decreasing(plan.tokens[items], token_budget)
    return np.split(items[order], batch_offsets(batch)[1:-1]) if len(items) else []


def check_plan_fits(plan: Plan, keys: NDArray[np.uint8], lengths: NDArray[Any]) -> None:
    """Check that a plan was made of these sequences, and has all items of each of them.

    Args:
        plan: the plan.
        keys: [sequences, 16] the shard's keys.
        lengths: [sequences] residues.

    Raises:
        DataError: an item is not of this shard, or one is missing.
    """
    expected = cut_items(np.asarray(lengths, np.int64), plan.parameters)
    order = np.lexsort((plan.start, plan.row))
    found = (column[order] for column in (plan.row, plan.start, plan.end, plan.truncated))
    if not all(map(np.array_equal, found, expected)) or not np.array_equal(
        plan.keys, keys[plan.row]
    ):
        raise DataError("the plan was made of another shard", hint="make the plan again")


def _pack(parameters: PlanParameters, items: Items, keys: NDArray[np.uint8]) -> Plan:
    """Pack items; those of equal length must be in the order of ties."""
    tokens = items.end - items.start + SPECIAL_TOKENS
    order, batch = first_fit_decreasing(tokens, parameters.token_budget)
    row, start, end = (column[order].astype(np.int32) for column in items[:3])
    columns = (batch, row, start, end, items.truncated[order], keys[order])
    return Plan(parameters, *columns, content_hash=content_hash(parameters, columns))
