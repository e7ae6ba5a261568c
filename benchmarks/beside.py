"""What a run of the workflow takes beside the model: seconds of each command and of Snakemake.

    python benchmarks/beside.py --sequences 110000

Runs the workflow on random proteins, with the commands that need a device replaced: `embed` writes
arrays of the right shape with made-up finite numbers (as benchmarks/scale.py does), and `budget` a
made-up budget; so the weights are the small ones of the demo, whatever --dim says. A process notes
its own seconds at its end; the rest of the CPU seconds is Snakemake's and the shells'. First the
files that come before the embedding are asked for, then the rest, as benchmarks/two_gpus.py does.
"""

from __future__ import annotations

import argparse
import itertools
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

from scale import simulate_shard

from virnucpro.files import write_json
from virnucpro.formats import BUDGET_FORMAT

ROOT = Path(__file__).parents[1]
NOTES = "VIRNUCPRO_BESIDE_NOTES"
DIM = "VIRNUCPRO_BESIDE_DIM"
# Python imports a module named sitecustomize when it starts. This one lets the commands that need a
# device be done by this file, and the others note their seconds.
HOOK = f"""
import atexit, os, sys, time

words = sys.orig_argv
if len(words) > 2 and os.path.basename(words[1]) == "virnucpro":
    start = time.perf_counter()

    def note():
        name = " ".join(word for word in words[2:4] if word.isalpha())
        seconds = time.perf_counter() - start, sum(os.times()[:4])
        with open(os.environ[{NOTES!r}], "a") as notes:
            notes.write("\\t".join([name, *map(str, seconds)]) + "\\n")

    if words[2] in ("embed", "budget"):
        program = [sys.executable, {str(Path(__file__).resolve())!r}, "--stand-in"]
        os.execv(program[0], program + words[2:])
    atexit.register(note)
"""


def stand_in(words: list[str]) -> None:
    """Do what `virnucpro embed` or `virnucpro budget` would, without a model."""
    start = time.perf_counter()
    option = dict(itertools.pairwise(words))
    if words[0] == "embed":
        target = Path(option["--embeddings"]).parent
        target.mkdir(parents=True, exist_ok=True)
        simulate_shard(Path(option["--plan"]), target, int(os.environ[DIM]))
    else:
        budget = {
            "format": BUDGET_FORMAT,
            "model": "demo",
            "device": "simulated",
            "tokens_per_step": 4096,
            "tokens_per_second": 1e6,
        }
        write_json(Path(option["--out"]), budget, sealed=True)
    with Path(os.environ[NOTES]).open("a") as notes:
        seconds = time.perf_counter() - start, sum(os.times()[:4])
        notes.write("\t".join([f"stand-in of {words[0]}", *map(str, seconds)]) + "\n")


def run(workdir: Path, what: str, *arguments: str) -> None:
    """Run the workflow and print what it took."""
    notes = workdir / "notes.tsv"
    notes.write_text("")
    command = [
        *(sys.executable, "-m", "snakemake", *arguments, "--cores", "all"),
        *("--resources", "gpu=2", "--directory", str(workdir)),
        *("--snakefile", str(ROOT / "workflow" / "Snakefile")),
    ]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wall = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(done.stdout)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    jobs = defaultdict(list)
    for line in notes.read_text().splitlines():
        name, *seconds = line.split("\t")
        jobs[name].append(tuple(map(float, seconds)))
    for name, each in jobs.items():
        walls, cpus = zip(*each, strict=True)
        row(what, name, len(each), sum(walls), sum(cpus))
        cpu -= sum(cpus)
    row(what, "all; CPU s: Snakemake and shells", "", wall, cpu)


def row(*cells: str | int | float) -> None:
    """Print a row of the table."""
    shown = (f"{cell:.1f}" if isinstance(cell, float) else str(cell) for cell in cells)
    print(f"| {' | '.join(shown)} |", flush=True)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sequences", type=int, default=110_000)
    parser.add_argument("--shards", type=int, default=8, help="a power of two")
    parser.add_argument("--dim", type=int, default=1280)
    parser.add_argument("--folder", type=Path, help="for the files; default: a temporary one")
    return parser.parse_args()


def main() -> None:
    """Print the table, or stand in for a command."""
    if sys.argv[1:2] == ["--stand-in"]:
        stand_in(sys.argv[2:])
        return
    from end_to_end import write_fasta  # here, for they load torch, and stand-ins are processes
    from peers import random_proteins, token_counts

    options = parse()
    with __import__("contextlib").nullcontext(tempfile.mkdtemp(dir=options.folder)) as name:
        workdir = Path(name)
        sequences = random_proteins(options.sequences, 0)
        tokens = int(token_counts(sequences).sum())
        (workdir / "config").mkdir()
        write_fasta(workdir / "proteins.faa", sequences)
        (workdir / "config" / "samples.tsv").write_text("sample\tfasta\nrandom\tproteins.faa\n")
        (workdir / "config" / "config.yaml").write_text(
            f"model: demo\nsplit: {{shard_tokens: {int(1.25 * tokens / options.shards)}}}\n"
        )
        (workdir / "sitecustomize.py").write_text(HOOK)
        known = [str(workdir), *filter(None, [os.environ.get("PYTHONPATH")])]
        os.environ |= {
            "PYTHONPATH": os.pathsep.join(known),
            NOTES: str(workdir / "notes.tsv"),
            DIM: str(options.dim),
        }
        print(f"{len(sequences):,} proteins, {tokens:,} tokens, {os.cpu_count()} cores\n")
        print(
            "| part | what | processes | wall s | CPU s |\n|:---|:---|---:|---:|---:|", flush=True
        )
        run(workdir, "before", "plans", "resources/token_budget/demo.json")
        run(workdir, "embedding and after")


if __name__ == "__main__":
    main()
