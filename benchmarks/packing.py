"""How fast and how full: First-Fit Decreasing on the histogram against the usual ways of batching.

Prints one table. Lengths are log-normal as those of viral proteins. Each measurement runs in a
process of its own, so that its peak memory (beyond that of the tokens) is its own. "Above bound" is
the batches over the lower bound, all tokens over the budget. For padding, the efficiency counts
the tokens of the rectangles, not the budget left over. Usage:

    python benchmarks/packing.py --items 10000 1000000 10000000 --budget 4096
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from virnucpro.plan.baselines import (
    next_fit_decreasing_bins,
    sorted_padding_tokens,
    unsorted_padding_tokens,
)
from virnucpro.plan.first_fit import first_fit_decreasing, place_histogram

Tokens = NDArray[np.int64]


class Outcome(NamedTuple):
    """What a method gave: the batches where it counts them, and the tokens that it computes."""

    batches: int | None
    computed_tokens: int


def proteins(items: int, seed: int) -> Tokens:
    """Draw the tokens of proteins: 20 to 1,022 residues, log-normal, with BOS and EOS."""
    lengths = np.random.default_rng(seed).lognormal(5.45, 0.75, items)
    return np.clip(lengths, 20, 1022).astype(np.int64) + 2


def histogram_core(tokens: Tokens, budget: int) -> Outcome:
    """Run only the decisions: which length goes to which batches."""
    placements = place_histogram(np.bincount(tokens), budget)
    batches = int((placements[:, 0] + placements[:, 1]).max())
    return Outcome(batches, batches * budget)


def histogram_full(tokens: Tokens, budget: int) -> Outcome:
    """Run all of it: sort, decisions, and the items in batch order."""
    _, batch = first_fit_decreasing(tokens, budget)
    batches = int(batch[-1]) + 1
    return Outcome(batches, batches * budget)


def naive_first_fit(tokens: Tokens, budget: int) -> Outcome:
    """Look for each item through all batches."""
    space: list[int] = []
    for length in np.sort(tokens)[::-1].tolist():
        for number, left in enumerate(space):
            if length <= left:
                space[number] -= length
                break
        else:
            space.append(budget - length)
    return Outcome(len(space), len(space) * budget)


def next_fit(tokens: Tokens, budget: int) -> Outcome:
    """Count next-fit decreasing."""
    batches = next_fit_decreasing_bins(tokens, budget)
    return Outcome(batches, batches * budget)


def sorted_padding(tokens: Tokens, budget: int) -> Outcome:
    """Count padding of sorted items."""
    return Outcome(None, sorted_padding_tokens(tokens, budget))


def unsorted_padding(tokens: Tokens, budget: int) -> Outcome:
    """Count padding in the order given."""
    return Outcome(None, unsorted_padding_tokens(tokens, budget))


METHODS: dict[str, Callable[[Tokens, int], Outcome]] = {
    "FFD, histogram: decisions": histogram_core,
    "FFD, histogram: sort to output": histogram_full,
    "FFD, naive": naive_first_fit,
    "next-fit decreasing": next_fit,
    "sorted padding": sorted_padding,
    "unsorted padding": unsorted_padding,
}


def measure(method: str, file: str, budget: int, repeats: int) -> tuple[float, int, Outcome]:
    """Run a method on the tokens in a file: least seconds, peak bytes beyond them, outcome."""
    tokens = np.load(file)
    METHODS[method](tokens[:1000], budget)
    before = _peak()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        outcome = METHODS[method](tokens, budget)
        seconds.append(time.perf_counter() - start)
    return min(seconds), _peak() - before, outcome


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def rows(options: argparse.Namespace, folder: str) -> Iterator[tuple[str, ...]]:
    """Measure and format one row after the other."""
    spawn = multiprocessing.get_context("spawn")
    for items in options.items:
        tokens = proteins(items, options.seed)
        file = str(Path(folder) / f"{items}.npy")
        np.save(file, tokens)
        bound = -(-int(tokens.sum()) // options.budget)
        for method in METHODS:
            if method == "FFD, naive" and items > options.naive_up_to:
                continue
            with spawn.Pool(1) as pool:
                arguments = (method, file, options.budget, options.repeats)
                seconds, peak, outcome = pool.apply(measure, arguments)
            batches = outcome.batches
            yield (
                f"{items:,}",
                method,
                f"{seconds:.4f}",
                f"{peak / 1e6:.0f}",
                "-" if batches is None else f"{batches:,}",
                "-" if batches is None else f"{batches - bound:,}",
                f"{100 * int(tokens.sum()) / outcome.computed_tokens:.3f}",
            )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--items", type=int, nargs="+", default=[10_000, 1_000_000, 10_000_000])
    parser.add_argument("--budget", type=int, default=4096, help="tokens of a batch")
    parser.add_argument("--naive-up-to", type=int, default=10_000, metavar="ITEMS")
    parser.add_argument("--repeats", type=int, default=3, help="the fastest run counts")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    heads = ("items", "method", "seconds", "peak MB", "batches", "above bound", "efficiency %")
    print(f"token budget {options.budget}\n")
    print("| " + " | ".join(heads) + " |")
    print("|---:|:---|" + "---:|" * (len(heads) - 2))
    with tempfile.TemporaryDirectory() as folder:
        for row in rows(options, folder):
            print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()
