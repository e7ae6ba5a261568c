"""Runs the whole workflow on one GPU and on two of the same machine, and compares.

    python benchmarks/two_gpus.py --sequences 200000                # one after the other
    python benchmarks/two_gpus.py --sequences 200000 --at-once      # on three GPUs, side by side

The weights are converted and the token budget is measured once, timed, and copied to all runs: they
start with the same number of tokens a step, so their results have to be the same to the bit. What
follows is ``snakemake --resources gpu=1`` and ``gpu=2``, from the FASTA files to the merged files
and the reports. ``--gpus 1 2 4`` asks for more jobs at a time than a machine of two GPUs has
devices: two of them then wait for a lock. With ``--at-once`` each run sees devices of its own.

A GPU's busy share is the mean of what nvidia-smi says every half second, from the start of the
first embed job to the end of the last; beside it stand the seconds of its steps.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import importlib.util
import itertools
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from end_to_end import write_fasta, write_published
from peers import MODELS, describe_run, random_proteins, token_counts

from virnucpro.files import sha256_of

ROOT = Path(__file__).parents[1]
SMALL = 1 << 20  # bytes; larger files are linked into a run's folder, and never written in place
CLAIMED = re.compile(r"INFO +GPU: (\S+) ")
SAMPLED = "timestamp,uuid,utilization.gpu,power.draw"


@dataclass
class Job:
    """An embed job that was run: its device, and when (seconds since the epoch)."""

    gpu: str
    begin: float
    end: float
    steps: float  # seconds


@dataclass
class Outcome:
    """What a run came to."""

    gpus: int
    seconds: float
    jobs: list[Job]
    samples: list[tuple[float, str, float, float]] = field(default_factory=list)

    @property
    def begin(self) -> float:
        """When the first embed job started."""
        return min(job.begin for job in self.jobs)

    @property
    def end(self) -> float:
        """When the last embed job ended."""
        return max(job.end for job in self.jobs)

    @property
    def embedding(self) -> float:
        """Seconds from the one to the other."""
        return self.end - self.begin

    def busy(self, gpu: str) -> tuple[float, float] | None:
        """Mean utilisation (percent) and power (W) of a GPU while shards were embedded."""
        during = [s[2:] for s in self.samples if s[1] == gpu and self.begin <= s[0] <= self.end]
        return tuple(np.mean(during, axis=0)) if during else None


def snakemake(
    workdir: Path, options: argparse.Namespace, *arguments: object, devices: str | None = None
) -> float:
    """Run the workflow in a folder, on some devices or all; give the wall seconds."""
    command = [sys.executable, "-m", "snakemake", *map(str, arguments)]
    command += ["--snakefile", str(ROOT / "workflow" / "Snakefile"), "--directory", str(workdir)]
    command += ["--cores", str(options.cores)]
    if importlib.util.find_spec("pulp") is None:
        command += ["--scheduler", "greedy"]
    environment = {**os.environ, **({"CUDA_VISIBLE_DEVICES": devices} if devices else {})}
    start = time.perf_counter()
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )
    seconds = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout}")
    return seconds


def make_command(folder: Path) -> None:
    """Put `virnucpro` on the PATH, for a Python that has the package only on its path."""
    known = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(known)
    os.environ["GIT_PYTHON_REFRESH"] = "quiet"  # Snakemake imports GitPython, and there is no git
    os.environ["VIRNUCPRO_LOCK_DIR"] = str(folder)
    if (Path(sys.executable).parent / "virnucpro").exists():
        return
    program = folder / "bin" / "virnucpro"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m virnucpro "$@"\n')
    program.chmod(0o755)
    os.environ["PATH"] = os.pathsep.join([str(program.parent), os.environ["PATH"]])


def samples(options: argparse.Namespace) -> list[str]:
    """Name the samples."""
    return [f"random{number}" for number in range(options.samples)]


def prepare(workdir: Path, options: argparse.Namespace) -> float:
    """Write the input, convert the weights and measure the token budget; seconds of the latter."""
    (workdir / "data").mkdir(parents=True)
    (workdir / "config").mkdir()
    largest = total = 0
    for number, sample in enumerate(samples(options)):
        sequences = random_proteins(options.sequences // options.samples, options.seed + number)
        tokens = int(token_counts(sequences).sum())
        largest, total = max(largest, tokens), total + tokens
        write_fasta(workdir / "data" / f"{sample}.faa", sequences)
    # A quarter above the mean, so that chance does not double the number of shards.
    shard_tokens = int(1.25 * largest / options.shards)
    model = MODELS[options.model].name
    write_published(workdir / "data" / f"{model}.pt", options.model, torch.float32, options.seed)
    sheet = "".join(f"{sample}\tdata/{sample}.faa\n" for sample in samples(options))
    (workdir / "config" / "samples.tsv").write_text(f"sample\tfasta\n{sheet}")
    (workdir / "config" / "config.yaml").write_text(
        f"model: data/{model}.pt\nsplit: {{shard_tokens: {shard_tokens}}}\n"
    )
    seconds = snakemake(workdir, options, f"resources/token_budget/{model}.json")
    print(
        f"\n{options.model}, {options.sequences:,} proteins, {total:,} tokens, {options.samples} "
        f"samples of {options.shards} shards; conversion of the weights and token budget: "
        f"{seconds:.1f} s",
        flush=True,
    )
    return seconds


def copy(prepared: Path, workdir: Path) -> None:
    """Copy a prepared folder, times and all; large files become links."""

    def each(source: str, target: str) -> None:
        if Path(source).stat().st_size > SMALL:
            os.link(source, target)
        else:
            shutil.copy2(source, target)

    shutil.copytree(prepared, workdir, copy_function=each)


@contextlib.contextmanager
def sampled_gpus() -> Iterator[list[tuple[float, str, float, float]]]:
    """Note time, UUID, utilisation (percent) and power (W) of each GPU, until the block ends."""
    samples: list[tuple[float, str, float, float]] = []
    if shutil.which("nvidia-smi") is None:
        yield samples
        return
    query = ["nvidia-smi", f"--query-gpu={SAMPLED}", "--format=csv,noheader,nounits", "-lms", "500"]
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(query, stdout=output)
        try:
            yield samples
        finally:
            process.terminate()
            process.wait()
            output.seek(0)
            for line in output:
                stamp, uuid, *values = map(str.strip, line.split(","))
                with contextlib.suppress(ValueError):  # a last line that was cut off
                    when = time.mktime(time.strptime(stamp[:19], "%Y/%m/%d %H:%M:%S"))
                    utilisation, power = map(float, values)
                    samples.append((when + float(stamp[19:] or 0), uuid, utilisation, power))


def run(
    prepared: Path, workdir: Path, gpus: int, options: argparse.Namespace, first: int
) -> Outcome:
    """Run the workflow with so many GPU jobs at a time, at once on devices from `first`."""
    copy(prepared, workdir)
    devices = ",".join(map(str, range(first, first + gpus))) if options.at_once else None
    with sampled_gpus() as sampled:
        seconds = snakemake(workdir, options, "--resources", f"gpu={gpus}", devices=devices)
    print(f"gpu={gpus}: {seconds:.1f} s", flush=True)
    jobs = []
    for receipt in sorted((workdir / "results").glob("*/embeddings/*/*.json")):
        sample, shard = receipt.parts[-3], receipt.stem
        log = (workdir / "logs" / "embed" / sample / f"{shard}.log").read_text()
        claimed = CLAIMED.search(log)
        (measured,) = rows(workdir / "benchmarks" / "results" / "embed" / sample / f"{shard}.tsv")
        end = receipt.stat().st_mtime
        steps = sum(float(row["seconds"]) for row in rows(receipt.with_suffix(".steps.tsv")))
        gpu = claimed[1] if claimed else "no GPU"
        jobs.append(Job(gpu, end - float(measured["s"]), end, steps))
    return Outcome(gpus, seconds, jobs, sampled)


def rows(path: Path) -> list[dict[str, str]]:
    """Read a tab-separated table."""
    with path.open(newline="") as handle:
        return list(csv.DictReader(handle, delimiter="\t"))


def overlapping(jobs: Sequence[Job]) -> int:
    """Count the jobs that started on a device before the one before them had ended.

    A job's start is taken from its wall time, which Snakemake rounds and which holds the wait for
    the lock; so only the steps count, which end with the job.
    """
    by_gpu = defaultdict(list)
    for job in jobs:
        by_gpu[job.gpu].append(job)
    count = 0
    for held in by_gpu.values():
        held.sort(key=lambda job: job.end)
        count += sum(
            later.end - later.steps < earlier.end for earlier, later in itertools.pairwise(held)
        )
    return count


def report(before: float, outcomes: Sequence[Outcome], folder: Path) -> None:
    """Print the tables."""
    first = outcomes[0]
    print(
        "\n| `--resources` | first run s | ratio | with weights and budget there s | ratio "
        "| embedding s | ratio | jobs sharing a GPU |"
    )
    print("|:---|---:|---:|---:|---:|---:|---:|---:|")
    for run_ in outcomes:
        whole = before + run_.seconds
        print(
            f"| gpu={run_.gpus} | {whole:.1f} | {(before + first.seconds) / whole:.3f} | "
            f"{run_.seconds:.1f} | {first.seconds / run_.seconds:.3f} | "
            f"{run_.embedding:.1f} | {first.embedding / run_.embedding:.3f} | "
            f"{overlapping(run_.jobs)} |"
        )
    print("\n| `--resources` | GPU | shards | steps s | of the embedding | busy % | power W |")
    print("|:---|:---|---:|---:|---:|---:|---:|")
    for run_ in outcomes:
        for gpu in sorted({job.gpu for job in run_.jobs}):
            steps = [job.steps for job in run_.jobs if job.gpu == gpu]
            busy = run_.busy(gpu)
            shown = f"{busy[0]:.1f} | {busy[1]:.0f}" if busy else "- | -"
            print(
                f"| gpu={run_.gpus} | {gpu[:12]} | {len(steps)} | {sum(steps):.1f} | "
                f"{sum(steps) / run_.embedding:.1%} | {shown} |"
            )
    for run_ in outcomes[1:]:
        same = digests(folder / f"gpu{first.gpus}") == digests(folder / f"gpu{run_.gpus}")
        print(
            f"\nresults of gpu={run_.gpus} and gpu={first.gpus}: "
            f"{'identical to the bit' if same else 'DIFFERENT'} "
            f"(every array, every receipt, embeddings.h5ad)"
        )


def digests(workdir: Path) -> dict[str, str]:
    """Hash the files that must not depend on the number of GPUs."""
    results = workdir / "results"
    patterns = ("*/embeddings/*/*.npy", "*/embeddings/*/*.json", "*/embeddings.h5ad")
    files = sorted(path for pattern in patterns for path in results.glob(pattern))
    return {str(path.relative_to(results)): sha256_of(path) for path in files}


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=MODELS, default="650M")
    parser.add_argument("--sequences", type=int, default=200_000)
    parser.add_argument("--samples", type=int, default=1)
    parser.add_argument("--shards", type=int, default=8, help="of a sample; a power of two")
    parser.add_argument("--at-once", action="store_true", help="each run on devices of its own")
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 2], help="one run for each")
    parser.add_argument("--cores", default="all")
    parser.add_argument("--folder", type=Path, help="for the files; default: a temporary one")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    """Prepare once, run for each number of GPUs, compare."""
    options = parse()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print("\n".join(f"- {line}" for line in describe_run(device)), flush=True)
    print(f"- GPUs: {torch.cuda.device_count()}; {os.cpu_count()} cores", flush=True)
    if options.folder is not None:
        options.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        make_command(folder)
        before = prepare(folder / "prepared", options)
        firsts = itertools.accumulate(options.gpus, initial=0)
        with ThreadPoolExecutor(len(options.gpus) if options.at_once else 1) as runs:
            pending = [
                runs.submit(
                    *(run, folder / "prepared", folder / f"gpu{gpus}", gpus, options, first)
                )
                for gpus, first in zip(options.gpus, firsts, strict=False)
            ]
            outcomes = [one.result() for one in pending]
        report(before, outcomes, folder)


if __name__ == "__main__":
    main()
