"""What the same items would cost with the usual ways of making batches.

Sorted and unsorted padding fill a batch while its rectangle, sequences times the longest, stays
within the budget, as fair-esm's ``FastaBatchedDataset.get_batch_indices`` does (shortest first).
Both sorted methods treat all items of one length at once, so their time does not depend on the
number of items.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["next_fit_decreasing_bins", "sorted_padding_tokens", "unsorted_padding_tokens"]

_BLOCK = 1 << 18


def next_fit_decreasing_bins(tokens: NDArray[Any], budget: int) -> int:
    """Count the batches of next-fit decreasing: longest first, and only one batch is open.

    Args:
        tokens: [items] tokens, each from 1 to `budget`.
        budget: tokens that a batch holds.

    Raises:
        ValueError: an item has fewer than 1 token or more than the budget.
    """
    bins = 0
    space = 0
    for length, count in _histogram(tokens, budget)[::-1]:
        left = count - min(count, space // length)
        if not left:
            space -= count * length
            continue
        each = budget // length
        opened = -(-left // each)
        bins += opened
        space = budget - (left - (opened - 1) * each) * length
    return bins


def sorted_padding_tokens(tokens: NDArray[Any], budget: int) -> int:
    """Count the tokens computed, padding included, when items are sorted, shortest first.

    Args:
        tokens: [items] tokens, each from 1 to `budget`.
        budget: tokens, padding included, that a batch holds.

    Raises:
        ValueError: an item has fewer than 1 token or more than the budget.
    """
    computed = 0
    open_items = 0
    longest = 0
    for length, count in _histogram(tokens, budget):
        each = budget // length
        left = count - min(count, max(each - open_items, 0))
        if left:
            # A batch that `length` joined is as wide as `length`, the open one of before is not.
            joined = count - left
            computed += (open_items + joined) * (length if joined else longest)
            opened = -(-left // each)
            computed += (opened - 1) * each * length
            open_items = left - (opened - 1) * each
        else:
            open_items += count
        longest = length
    return computed + open_items * longest


def unsorted_padding_tokens(tokens: NDArray[Any], budget: int) -> int:
    """Count the tokens computed, padding included, when items keep their order.

    Args:
        tokens: [items] tokens, each from 1 to `budget`, in their order.
        budget: tokens, padding included, that a batch holds.

    Raises:
        ValueError: an item has fewer than 1 token or more than the budget.
    """
    _check(tokens, budget)
    computed = 0
    items = 0
    longest = 0
    # Blocks, so that the numbers of a long list never exist all at once as Python objects.
    for block in range(0, len(tokens), _BLOCK):
        for length in tokens[block : block + _BLOCK].tolist():
            width = length if length > longest else longest
            if width * (items + 1) > budget:
                computed += items * longest
                items = 0
                width = length
            items += 1
            longest = width
    return computed + items * longest


def _histogram(tokens: NDArray[Any], budget: int) -> list[tuple[int, int]]:
    """Return (tokens, how many items have them), fewest tokens first."""
    _check(tokens, budget)
    counts = np.bincount(tokens)
    lengths = np.flatnonzero(counts)
    return list(zip(lengths.tolist(), counts[lengths].tolist(), strict=True))


def _check(tokens: NDArray[Any], budget: int) -> None:
    if tokens.size and not 1 <= tokens.min() <= tokens.max() <= budget:
        raise ValueError(
            f"items have {tokens.min()} to {tokens.max()} tokens, expected 1 to {budget}"
        )
