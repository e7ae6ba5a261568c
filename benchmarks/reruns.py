"""What proteins that a store knows cost: the same ones again, and with 1% new among them.

    python benchmarks/reruns.py --model 650M --sequences 100000
    python benchmarks/reruns.py --model 8M --sequences 200 --device cpu

Times whole commands on one shard, start-up included: `virnucpro embed` without a store, with an
empty one that it fills, with one that knows all (under other names and in another order), and with
one that knows 99%. Beside them split and merge of the same proteins, which a rerun does anyway.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from end_to_end import (
    Timed,
    only_shard,
    prepare_model,
    prepare_shard,
    virnucpro_command,
    write_fasta,
    write_published,
)
from peers import MODELS, describe_run, random_proteins, token_counts

NEW = 0.01  # of the proteins, in the last run


def embed(folder: Path, weights: Path, options: argparse.Namespace, store: Path | None) -> Timed:
    """Run ``virnucpro embed`` on a folder's shard."""
    stem = folder / "embeddings" / only_shard(folder).stem
    command = [
        *("embed", only_shard(folder), "--plan", folder / "plan.parquet"),
        *("--weights", weights / "model.safetensors", "--model-receipt", weights / "model.json"),
        *("--budget", weights / "budget.json", "--embeddings", stem.with_suffix(".npy")),
        *("--receipt", stem.with_suffix(".json"), "--step-log", stem.with_suffix(".steps.tsv")),
        *("--device", options.device, "--store", store or ""),
    ]
    return virnucpro_command(command)


def merge(folder: Path) -> Timed:
    """Run ``virnucpro merge`` on a folder's shard."""
    plans = folder / "plans"
    plans.mkdir()
    for name in ("plan.parquet", "plan.json"):
        (plans / name.replace("plan", only_shard(folder).stem)).hardlink_to(folder / name)
    command = [
        *("merge", "--shards", folder / "shards", "--records", folder / "records.parquet"),
        *("--plans", plans, "--embeddings", folder / "embeddings"),
        *("--output", folder / "embeddings.h5ad", "--quarantine", folder / "quarantine.tsv"),
    ]
    return virnucpro_command(command)


def compare(root: Path, options: argparse.Namespace) -> None:
    """Run everything and print the table."""
    count, new = options.sequences, max(1, round(NEW * options.sequences))
    proteins = random_proteins(count + new, options.seed)
    known, others = proteins[:count], proteins[: count - new] + proteins[count:]
    rng = np.random.default_rng(options.seed)
    sets = {
        "no store": known,
        "an empty store, filled": known,
        "all known, other names and order": [known[i] for i in rng.permutation(count)],
        f"{NEW:.0%} new": others,
    }
    published = root / f"{MODELS[options.model].name}.pt"
    options.dtype = "auto"  # of the token budget
    write_published(published, options.model, torch.float32, options.seed)
    prepare_model(root, published, options)
    tokens = int(token_counts(known).sum())
    print(f"\n{options.model}, {count:,} proteins, {tokens:,} tokens\n")
    print("| run | embed s | to no store | split s | merge s | embed / (split + merge) |")
    print("|:---|---:|---:|---:|---:|---:|")
    base = None
    for number, (name, sequences) in enumerate(sets.items()):
        folder = root / str(number)
        folder.mkdir()
        write_fasta(folder / "proteins.fasta", sequences)
        split = prepare_shard(folder)["split"].seconds
        run = embed(folder, root, options, root / "store" if number else None)
        merged = merge(folder)
        base = base or run.seconds
        rest = split + merged.seconds
        print(
            f"| {name} | {run.seconds:.1f} | {run.seconds / base:.3f} | "
            f"{split:.1f} | {merged.seconds:.1f} | {run.seconds / rest:.2f} |",
            flush=True,
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print("\n" + "\n".join(describe_run(device)))


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=MODELS, default="650M")
    parser.add_argument("--sequences", type=int, default=100_000)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        compare(Path(folder), options)


if __name__ == "__main__":
    main()
