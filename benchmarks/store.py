"""How long it takes to find proteins in an embedding store, and to take and add their rows.

Makes stores of keys as hashes have them (with vectors of dimension 1: looking up reads none), and
looks up as many keys, all of them known, in a process of its own, whose peak memory is its own.
Then takes rows of the dimension of 650M from a smaller store and adds them to another one. Prints
two tables. Usage:

    python benchmarks/store.py --rows 10000000 --segments 10 1000 --folder /tmp/store
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from virnucpro.store.request import Request
from virnucpro.store.segment import SEGMENT_ROWS
from virnucpro.store.store import Store
from virnucpro.store.writing import write_segment

DIM = 1280  # of 650M

REQUEST = Request(
    weights_sha256="00" * 32,
    layers=[33],
    pooling="mean",
    pseudo_perplexity="none",
    compute_dtype="float16",
    output_dtype="float32",
    max_sequence_length=1022,
    long_sequences="truncate",
    window_overlap=0,
    tokens_per_step=262144,
    device="benchmark",
    threads=None,
    backend="kernels",
    torch="2.13.0",
)


def sorted_keys(rows: int, seed: int = 0) -> NDArray[np.uint8]:
    """Draw keys, [rows, 16] increasing."""
    halves = np.random.default_rng(seed).integers(0, 1 << 64, (rows, 2), np.uint64)
    order = np.lexsort((halves[:, 1], halves[:, 0]))
    return halves[order].astype(">u8").view(np.uint8)


def make_store(folder: Path, keys: NDArray[np.uint8], segments: int) -> None:
    """Spread keys over segments as shards do: each has some of everywhere."""
    for number in range(segments):
        part = keys[number::segments]
        block = {"embeddings": np.ones((len(part), 1, 1), np.float32)}
        write_segment(folder, REQUEST, part, (1, 1), [block])


def look_up(folder: Path, rows: int, result: multiprocessing.SimpleQueue) -> None:
    """Look up all keys; put seconds and MB of peak memory into the queue."""
    keys = sorted_keys(rows)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begun = time.perf_counter()
    known = Store([folder]).look_up(REQUEST, keys)
    seconds = time.perf_counter() - begun
    assert known.found.all()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result.put((seconds, before / 1e3, peak / 1e3))


def report_look_up(folder: Path, rows: int, segments: list[int]) -> None:
    """Print the table of look-ups."""
    print("| keys known | of | segments | seconds | peak MB | MB before, with the keys drawn |")
    print("|---|---|---|---|---|---|")
    for count in segments:
        store = folder / f"store-{count}"
        make_store(store, sorted_keys(rows), count)
        result = multiprocessing.get_context("spawn").SimpleQueue()
        process = multiprocessing.get_context("spawn").Process(
            target=look_up, args=(store, rows, result)
        )
        process.start()
        process.join()
        assert process.exitcode == 0
        seconds, before, peak = result.get()
        print(f"| {rows:,} | {rows:,} | {count:,} | {seconds:.1f} | {peak:,.0f} | {before:,.0f} |")
        shutil.rmtree(store)


def report_rows(folder: Path, rows: int) -> None:
    """Print the table of rows that are added and taken."""
    keys = sorted_keys(rows)
    arrays = {"embeddings": np.random.default_rng(1).random((rows, 1, DIM), np.float32)}
    store, size = folder / "rows", arrays["embeddings"].nbytes / 1e9
    begun = time.perf_counter()
    assert Store([store]).add(REQUEST, keys, arrays) == rows
    added = time.perf_counter() - begun
    out = {"embeddings": np.empty_like(arrays["embeddings"])}
    begun = time.perf_counter()
    assert Store([store]).fill(Store([store]).look_up(REQUEST, keys), out).filled.all()
    taken = time.perf_counter() - begun
    assert np.array_equal(out["embeddings"], arrays["embeddings"])
    print(f"\n| rows of dimension {DIM} | GB | seconds to add | to look up and take |")
    print("|---|---|---|---|")
    print(f"| {rows:,} | {size:.2f} | {added:.1f} | {taken:.1f} |")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--segments", type=int, nargs="+", default=[10, 1000])
    parser.add_argument("--taken", type=int, default=200_000)
    parser.add_argument("--folder", type=Path, help="where the stores are made")
    options = parser.parse_args()
    fewest = -(-options.rows // SEGMENT_ROWS)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        counts = [max(count, fewest) for count in options.segments]
        report_look_up(Path(folder), options.rows, counts)
        report_rows(Path(folder), options.taken)


if __name__ == "__main__":
    main()
