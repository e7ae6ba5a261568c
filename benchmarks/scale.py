"""Time and memory of everything but the model, from ten thousand to ten million proteins.

    python benchmarks/scale.py --records 10000 100000 1000000 10000000

Writes FASTA of random proteins (lengths lognormal as in viral proteome sets, one record in ten
repeats a sequence), and runs on it what the workflow runs: split, plans of all shards, merge. The
embedding is simulated by arrays of the right shape with made-up finite numbers and true receipts;
there is no way to that from the command line or the workflow. Each step is a process of its own.
"peak MB" is its anonymous memory, sampled: pages of mapped files can be given back at any time.
The dry run is Snakemake's, over a sample that is split into so many shards.

Everything lies in a temporary folder (--folder chooses the disk), removed step by step; ten million
proteins of 320 dimensions need about 25 GB.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from virnucpro import __version__
from virnucpro.files import read_json, sha256_of, write_json
from virnucpro.formats import EMBED_FORMAT, STEP_LOG_COLUMNS
from virnucpro.plan.build import plan_shard
from virnucpro.plan.parameters import PlanParameters
from virnucpro.plan.plan import read_plan

ROOT = Path(__file__).parents[1]
LETTERS = np.frombuffer(b"ACDEFGHIKLMNPQRSTVWY", np.uint8)
LONGEST = 30_000  # residues, of an input record
REPEATED = 0.1
CHUNK = 50_000  # records that are made at once
LINE = 60
SAMPLED_SECONDS = 0.02
DISK_BYTES = 2 << 30  # written to find the disk's rate


@dataclass
class Cost:
    """What a command took."""

    wall: float  # seconds
    cpu: float  # seconds, user and system
    peak: int  # bytes of anonymous memory


def command(*arguments: object) -> Cost:
    """Run Python with these arguments; give what it took."""
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    said: list[str] = []
    reader = threading.Thread(target=lambda: said.extend(process.stderr or ()))
    reader.start()
    peak = 0
    while True:
        peak = max(peak, anonymous(process.pid))
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            break
        time.sleep(SAMPLED_SECONDS)
    wall = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    reader.join()
    if process.returncode:
        raise SystemExit("".join(said))
    return Cost(wall, usage.ru_utime + usage.ru_stime, peak)


def anonymous(pid: int) -> int:
    """Bytes of a process's anonymous memory; 0 when it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon")), 0)


def write_fasta(path: Path, records: int, seed: int) -> int:
    """Write random proteins as FASTA; give the file's bytes."""
    random = np.random.default_rng(seed)
    earlier: list[bytes] = []
    with path.open("wb") as handle:
        for first in range(0, records, CHUNK):
            count = min(CHUNK, records - first)
            lengths = random.lognormal(5.45, 0.68, count).astype(int).clip(20, LONGEST)
            letters = LETTERS[random.integers(0, 20, lengths.sum(), dtype=np.uint8)].tobytes()
            ends = lengths.cumsum().tolist()
            sequences = [
                letters[end - length : end]
                for end, length in zip(ends, lengths.tolist(), strict=True)
            ]
            known = earlier or sequences
            for row in np.flatnonzero(random.random(count) < REPEATED).tolist():
                sequences[row] = known[int(random.integers(len(known)))]
            handle.write(b"".join(fasta_lines(first, sequences)))
            earlier = sequences
    return path.stat().st_size


def fasta_lines(first: int, sequences: Sequence[bytes]) -> Iterator[bytes]:
    """Give records as pieces of FASTA."""
    for number, residues in enumerate(sequences, first):
        yield b">prot_%d putative protein [Virus sp. %d]\n" % (number, number % 997)
        for start in range(0, len(residues), LINE):
            yield residues[start : start + LINE] + b"\n"


def plan_all(folder: Path) -> None:
    """Plan every shard, as many side by side as there are cores (the workflow: a job a shard)."""
    with multiprocessing.Pool() as pool:
        pool.map(plan_one, sorted((folder / "shards").glob("*.fasta")), chunksize=1)


def plan_one(shard: Path) -> None:
    """Plan a shard."""
    folder = shard.parents[1] / "plan"
    plan_shard(
        shard,
        folder / f"{shard.stem}.parquet",
        folder / f"{shard.stem}.json",
        PlanParameters(4096, 1022),
    )


def simulate(folder: Path, dim: int) -> None:
    """Stand in for the model: every shard's array of the right shape, receipt and step log."""
    target = folder / "embeddings"
    target.mkdir()
    for path in sorted((folder / "plan").glob("*.parquet")):
        simulate_shard(path, target, dim)


def simulate_shard(path: Path, target: Path, dim: int) -> None:
    """Write array, receipt and step log of a plan's shard into a folder."""
    noise = np.random.default_rng(0).standard_normal((4096, 1, dim)).astype(np.float16)
    plan = read_plan(path)
    sequences = int(plan.row.max()) + 1
    npy = target / f"{path.stem}.npy"
    array = np.lib.format.open_memmap(npy, "w+", np.float16, (sequences, 1, dim))
    for start in range(0, sequences, len(noise)):
        part = array[start : start + len(noise)]
        part[:] = noise[: len(part)]
    array.flush()
    del array
    (target / f"{path.stem}.steps.tsv").write_text("\t".join(STEP_LOG_COLUMNS) + "\n")
    write_json(
        target / f"{path.stem}.json",
        {
            "format": EMBED_FORMAT,
            "shard": path.stem,
            "array_sha256": sha256_of(npy),
            "extras": {},
            "shape": [sequences, 1, dim],
            "dtype": "float16",
            "plan_hash": plan.content_hash,
            "sequences": sequences,
            "weights_sha256": hashlib.sha256(b"simulated").hexdigest(),
            "model": "simulated",
            "demo": True,
            "layers": [1],
            "pooling": "mean",
            "pseudo_perplexity": "none",
            "compute_dtype": "float16",
            "device": "simulated",
            "backend": "simulated",
            "tokens_per_step": plan.token_budget,
            "versions": {"virnucpro": __version__},
            "quarantined": [],
            "steps": 0,
            "retries": 0,
            "recomputed_float32": 0,
        },
    )


def disk_rate(folder: Path) -> float:
    """Bytes a second that the disk takes in one direction, flushed."""
    path, block = folder / "rate", os.urandom(1 << 24)
    start = time.perf_counter()
    with path.open("wb") as handle:
        for _ in range(DISK_BYTES // len(block)):
            handle.write(block)
        os.fsync(handle.fileno())
    seconds = time.perf_counter() - start
    path.unlink()
    return DISK_BYTES / seconds


def scale(folder: Path, records: int, dims: Sequence[int], options: argparse.Namespace) -> None:
    """Measure one size and print its rows."""
    fasta, shards = folder / "proteins.faa", folder / "shards"
    size = write_fasta(fasta, records, options.seed)
    cost = command(
        *("-m", "virnucpro", "split", fasta, "--sample", "scale", "--shards", shards),
        *("--records", folder / "records.parquet", "--shard-tokens", options.shard_tokens),
    )
    fasta.unlink()
    number = len(read_json(shards / "manifest.json")["shards"])
    row(records, f"split ({size / 1e9:.2f} GB into {number} shards)", cost, size)
    row(records, "plans of all shards", command(__file__, "--plan-all", folder))
    for dim in dims:
        command(__file__, "--simulate", folder, dim)
        merged = folder / "embeddings.h5ad"
        cost = command(
            *("-m", "virnucpro", "merge", "--shards", shards, "--plans", folder / "plan"),
            *("--records", folder / "records.parquet", "--embeddings", folder / "embeddings"),
            *("--output", merged, "--quarantine", folder / "quarantine.tsv"),
        )
        written = merged.stat().st_size
        row(records, f"merge × {dim:,} float16 ({written / 1e9:.2f} GB)", cost, written)
        shutil.rmtree(folder / "embeddings")
        merged.unlink()


def row(records: int, what: str, cost: Cost, size: int | None = None) -> None:
    """Print a row of the table."""
    rate = "" if size is None else f"{size / cost.wall / 1e6:,.0f}"
    print(
        f"| {records:,} | {what} | {cost.wall:.1f} | {cost.cpu:.1f} | "
        f"{1e6 * cost.cpu / records:.1f} | {cost.peak / 1e6:,.0f} | {rate} |",
        flush=True,
    )


def dry_run(folder: Path, shards: int, seed: int) -> None:
    """Time Snakemake's dry run of all jobs that follow a split into so many shards."""
    (folder / "config").mkdir(parents=True)
    (folder / "config" / "samples.tsv").write_text("sample\tfasta\nscale\tproteins.faa\n")
    write_fasta(folder / "proteins.faa", 40 * shards, seed)
    # More than the mean of a shard, for their number is the next power of two.
    tokens = sum(len(line) for line in (folder / "proteins.faa").open("rb"))
    (folder / "config" / "config.yaml").write_text(
        f"split: {{shard_tokens: {int(1.9 * tokens / shards)}}}\n"
    )
    snakemake = [
        *("-m", "snakemake", "--snakefile", ROOT / "workflow" / "Snakefile", "--quiet"),
        *("--directory", folder, "--cores", "2"),
    ]
    command(*snakemake, "--until", "split")
    number = len(list((folder / "results" / "scale").glob("split/*/shards/*.fasta")))
    cost = command(*snakemake, "--dry-run")
    print(
        f"| {number:,} shards | {cost.wall:.1f} | {cost.cpu:.1f} | {cost.peak / 1e6:,.0f} |",
        flush=True,
    )


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    sizes = [10_000, 100_000, 1_000_000, 10_000_000]
    parser.add_argument("--records", type=int, nargs="*", default=sizes)
    parser.add_argument("--dims", type=int, nargs="+", default=[320, 1280])
    parser.add_argument(
        "--largest", type=int, default=2_000_000_000, help="records × dimensions of a merge"
    )
    parser.add_argument("--shards", type=int, nargs="*", default=[256, 512], help="of a dry run")
    parser.add_argument("--shard-tokens", type=int, default=100_000_000)
    parser.add_argument("--folder", type=Path, help="for the files; default: a temporary one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plan-all", type=Path, metavar="FOLDER", help=argparse.SUPPRESS)
    parser.add_argument("--simulate", nargs=2, metavar=("FOLDER", "DIM"), help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Print the tables, or run the one step that the benchmark starts."""
    options = parse()
    if options.plan_all:
        plan_all(options.plan_all)
        return
    if options.simulate:
        simulate(Path(options.simulate[0]), int(options.simulate[1]))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        print(f"- {os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}")
        print(f"- the disk takes {disk_rate(Path(name)) / 1e6:,.0f} MB/s")
        print(f"- load before: {os.getloadavg()[0]:.1f}")
        print("\n| records | step | wall s | CPU s | µs a record (CPU) | peak MB | MB/s |")
        print("|---:|:---|---:|---:|---:|---:|---:|", flush=True)
        for records in options.records:
            folder = Path(name) / str(records)
            folder.mkdir()
            dims = [dim for dim in options.dims if records * dim <= options.largest]
            scale(folder, records, dims or options.dims[:1], options)
            shutil.rmtree(folder)
        print("\n| dry run | wall s | CPU s | peak MB |\n|---:|---:|---:|---:|", flush=True)
        for shards in options.shards:
            dry_run(Path(name) / f"dry{shards}", shards, options.seed)


if __name__ == "__main__":
    main()
