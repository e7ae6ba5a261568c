"""Times whole commands: FASTA on disk to files on disk, start-up included.

    python benchmarks/end_to_end.py --model 650M --sequences 4000
    python benchmarks/end_to_end.py --model 8M --sequences 50 --device cpu

Ours is ``virnucpro embed`` on one shard; what the workflow does once before it (split, plan, fetch,
budget) is timed beside it. The other is what fair-esm's ``scripts/extract.py`` does: sorted
padding, 4,096 tokens a batch, cut to 1,022 residues, float32, the mean of the last layer, one .pt
file a protein. Both are processes of their own, on the same FASTA, the same random weights in the
published structure, the same device, one after the other; files written just before are in the
page cache for both. Start-up is from the start of the process to the start of its first step.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import esm
import numpy as np
import torch
from peers import (
    EXTRACT_TOKENS,
    LONGEST,
    MODELS,
    describe_run,
    extract_batch,
    random_fair_esm,
    random_proteins,
    token_counts,
)

import virnucpro
from virnucpro.sequences.alphabet import sequence_key
from virnucpro.sequences.shards import read_shard

STEPS_BEGIN = "Token budget"  # the last line of the log before the first step
COMPARED = 64  # proteins whose vectors are compared
CONTACTS = "-contact-regression.pt"  # fair-esm wants this file beside the weights


class Timed:
    """A process that was run: its wall seconds, and when each line of its log came."""

    def __init__(self, command: Sequence[str]) -> None:
        package = str(Path(virnucpro.__file__).parents[1])
        known = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(known), "PYTHONUNBUFFERED": "1"}
        self.lines: list[tuple[float, str]] = []
        start = time.perf_counter()
        with subprocess.Popen(
            [sys.executable, *command], stderr=subprocess.PIPE, text=True, env=environment
        ) as process:
            for line in process.stderr or ():
                self.lines.append((time.perf_counter() - start, line.rstrip()))
        self.seconds = time.perf_counter() - start
        if process.returncode:
            log = "\n".join(line for _, line in self.lines)
            raise SystemExit(f"{' '.join(command[:4])} ended with {process.returncode}\n{log}")

    def when(self, text: str) -> float | None:
        """Give the seconds until the first line with this text."""
        return next((seconds for seconds, line in self.lines if text in line), None)


def write_fasta(path: Path, sequences: Sequence[str]) -> None:
    """Write proteins as FASTA, 60 residues a line."""
    with path.open("w") as handle:
        for number, residues in enumerate(sequences):
            lines = (residues[i : i + 60] for i in range(0, len(residues), 60))
            handle.write(f">protein_{number}\n" + "\n".join(lines) + "\n")


def write_published(path: Path, size: str, dtype: torch.dtype, seed: int) -> None:
    """Write random weights in the structure in which fair-esm publishes them."""
    config = MODELS[size]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = random_fair_esm(config, device, seed)
    state = {name: tensor.cpu() for name, tensor in model.state_dict().items()}
    del model
    if device.type == "cuda":
        torch.cuda.empty_cache()  # the commands measure what is free
    contacts = {name: state.pop(name) for name in list(state) if name.startswith("contact_head.")}
    named = {
        f"encoder.{'' if name.startswith('lm_head.') else 'sentence_encoder.'}{name}": (
            tensor if name.endswith("inv_freq") else tensor.to(dtype)
        )
        for name, tensor in state.items()
    }
    shape = argparse.Namespace(
        encoder_layers=config.layers,
        encoder_embed_dim=config.dim,
        encoder_attention_heads=config.heads,
        token_dropout=True,
    )
    torch.save({"cfg": {"model": shape}, "model": named}, path)
    torch.save({"model": contacts}, path.with_name(path.stem + CONTACTS))


def extract(weights: Path, fasta: Path, output: Path, device: torch.device) -> None:
    """Do what ``scripts/extract.py --include mean --repr_layers -1`` does."""
    with torch.serialization.safe_globals([argparse.Namespace]):
        model, alphabet = esm.pretrained.load_model_and_alphabet_local(weights)
    model = model.eval().to(device)
    data = esm.FastaBatchedDataset.from_file(fasta)
    loader = torch.utils.data.DataLoader(
        data,
        collate_fn=alphabet.get_batch_converter(LONGEST),
        batch_sampler=data.get_batch_indices(EXTRACT_TOKENS, extra_toks_per_seq=1),
    )
    print(STEPS_BEGIN, EXTRACT_TOKENS, file=sys.stderr)
    output.mkdir()
    with torch.no_grad():
        for labels, strings, tokens in loader:
            hidden = extract_batch(model, tokens.to(device, non_blocking=True))
            for row, (label, residues) in enumerate(zip(labels, strings, strict=True)):
                mean = hidden[row, 1 : min(LONGEST, len(residues)) + 1].mean(0).clone()
                result = {"label": label, "mean_representations": {model.num_layers: mean}}
                torch.save(result, output / f"{label}.pt")


def prepare_shard(folder: Path) -> dict[str, Timed]:
    """Split and plan the proteins of a folder; one shard, whatever its size."""
    split = [
        *("split", folder / "proteins.fasta", "--sample", "random", "--shards", folder / "shards"),
        *("--records", folder / "records.parquet", "--shard-tokens", 2**40),
    ]
    timed = {"split": virnucpro_command(split)}
    plan = [
        *("plan", only_shard(folder), "--plan", folder / "plan.parquet"),
        *("--report", folder / "plan.json"),
    ]
    return timed | {"plan": virnucpro_command(plan)}


def prepare_model(folder: Path, weights: Path, options: argparse.Namespace) -> dict[str, Timed]:
    """Convert the weights and measure their token budget."""
    names = {
        "fetch": [
            *("model", "fetch", weights, "--weights", folder / "model.safetensors"),
            *("--receipt", folder / "model.json"),
        ],
        "budget": [
            *("budget", "--weights", folder / "model.safetensors"),
            *("--receipt", folder / "model.json", "--out", folder / "budget.json"),
            *("--device", options.device, "--dtype", options.dtype),
        ],
    }
    return {name: virnucpro_command(command) for name, command in names.items()}


def only_shard(folder: Path) -> Path:
    """Find the shard that `split` wrote, whose name is of its content."""
    (shard,) = (folder / "shards").glob("*.fasta")
    return shard


def embed(folder: Path, options: argparse.Namespace) -> Timed:
    """Run ``virnucpro embed`` on the shard."""
    command = [
        *("embed", only_shard(folder), "--plan", folder / "plan.parquet"),
        *("--weights", folder / "model.safetensors", "--model-receipt", folder / "model.json"),
        *("--budget", folder / "budget.json", "--embeddings", folder / "embeddings.npy"),
        *("--receipt", folder / "embeddings.json", "--step-log", folder / "steps.tsv"),
        *("--device", options.device, "--dtype", options.dtype),
    ]
    for name in ("embeddings.npy", "embeddings.json", "steps.tsv"):
        (folder / name).unlink(missing_ok=True)
    return virnucpro_command(command)


def virnucpro_command(command: Sequence[object]) -> Timed:
    """Run a command of the package."""
    return Timed(["-m", "virnucpro", *map(str, command)])


def steps_of(step_log: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read the seconds and the tokens of the steps."""
    with step_log.open(newline="") as handle:
        rows = list(csv.DictReader(handle, delimiter="\t"))
    seconds = np.array([float(row["seconds"]) for row in rows])
    return seconds, np.array([int(row["tokens"]) for row in rows])


def least_cosine(folder: Path, sequences: Sequence[str]) -> float:
    """Compare some of the vectors that both commands wrote."""
    vectors = np.load(folder / "embeddings.npy", mmap_mode="r")
    rows = {key: row for row, key in enumerate(read_shard(only_shard(folder)).keys)}
    cosines = []
    for number, residues in enumerate(sequences[:COMPARED]):
        ours = vectors[rows[sequence_key(residues.encode()).hex()], 0].astype(np.float64)
        result = torch.load(folder / "extract" / f"protein_{number}.pt", weights_only=True)
        (mean,) = result["mean_representations"].values()
        theirs = mean.double().numpy()
        cosines.append(ours @ theirs / np.linalg.norm(ours) / np.linalg.norm(theirs))
    return float(min(cosines))


def report_ours(folder: Path, run: Timed, tokens: int) -> dict[str, float | None]:
    """Print the parts of our command; give what goes into the table."""
    seconds, counts = steps_of(folder / "steps.tsv")
    begin = run.when(STEPS_BEGIN)
    typical = float(np.median(seconds[1:])) if len(seconds) > 1 else 0.0
    print(f"\n`virnucpro embed`, {len(seconds)} steps, seconds from the start of the process:\n")
    for what, text in (("imports done, inputs read", "device:"), ("weights loaded", "loaded in")):
        print(f"- {what}: {shown(run.when(text))}")
    print(f"- first step begins: {shown(begin)}")
    print(f"- first step: {seconds[0]:.2f} (others, median: {typical:.3f})")
    if begin is not None:
        print(
            f"- all steps: {seconds.sum():.2f}; after them: "
            f"{run.seconds - begin - seconds.sum():.2f}"
        )
    if len(seconds) > 2:  # the first and last also hold what overlaps with their neighbours
        rate = counts[1:-1].sum() / seconds[1:-1].sum()
        print(f"- rate of the steps between the first and the last: {rate:,.0f} tokens/s")
    return {"seconds": run.seconds, "start_up": begin, "rate": tokens / run.seconds}


def shown(value: float | None) -> str:
    """Format seconds, or a dash for none."""
    return "-" if value is None else f"{value:.2f}"


def compare(folder: Path, options: argparse.Namespace) -> dict[str, object]:
    """Run everything and print the table."""
    sequences = random_proteins(options.sequences, options.seed)
    tokens = int(token_counts(sequences).sum())
    fasta, weights = folder / "proteins.fasta", folder / f"{MODELS[options.model].name}.pt"
    write_fasta(fasta, sequences)
    write_published(weights, options.model, getattr(torch, options.stored), options.seed)
    print(
        f"\n{options.model}, {len(sequences):,} proteins, {tokens:,} tokens, weights stored in "
        f"{options.stored}",
        flush=True,
    )
    prepared = prepare_shard(folder) | prepare_model(folder, weights, options)
    before = {name: run.seconds for name, run in prepared.items()}
    print("\nbefore, once: " + ", ".join(f"{k} {v:.1f} s" for k, v in before.items()), flush=True)
    runs = {"virnucpro embed": report_ours(folder, embed(folder, options), tokens)}
    if not options.ours_only:
        command = [__file__, "--extract", weights, fasta, folder / "extract"]
        other = Timed([*map(str, command), "--device", options.device])
        runs["fair-esm extract.py"] = {
            "seconds": other.seconds,
            "start_up": other.when(STEPS_BEGIN),
            "rate": tokens / other.seconds,
        }
    print("\n| command | wall s | start-up s | tokens/s | times slower |")
    print("|:---|---:|---:|---:|---:|")
    for name, run in runs.items():
        ratio = run["seconds"] / runs["virnucpro embed"]["seconds"]
        print(
            f"| {name} | {run['seconds']:.2f} | {shown(run['start_up'])} | {run['rate']:,.0f} | "
            f"{ratio:.2f} |"
        )
    result: dict[str, object] = {"before": before, "runs": runs, "tokens": tokens}
    if not options.ours_only:
        result["least_cosine"] = least_cosine(folder, sequences)
        print(
            f"\nleast cosine between the two, first {COMPARED} proteins: "
            f"{result['least_cosine']:.6f}"
        )
    return result


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=MODELS, default="650M")
    parser.add_argument("--sequences", type=int, default=4000)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--dtype", default="auto", help="of virnucpro embed")
    parser.add_argument(
        "--stored",
        choices=["float32", "float16"],
        default="float32",
        help="dtype of the weights on disk",
    )
    parser.add_argument("--ours-only", action="store_true", help="leave fair-esm out")
    parser.add_argument("--folder", type=Path, help="for the files; default: a temporary one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    parser.add_argument(
        "--extract",
        type=Path,
        nargs=3,
        metavar=("WEIGHTS", "FASTA", "OUTPUT"),
        help="only run fair-esm's loop (what the comparison starts)",
    )
    return parser.parse_args()


def main() -> None:
    """Run the comparison, or the one command that it starts."""
    options = parse()
    automatic = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(automatic if options.device == "auto" else options.device)
    if options.extract:
        extract(*options.extract, device)
        return
    about = describe_run(device)
    print("\n".join(f"- {line}" for line in about), flush=True)
    if options.folder is not None:
        options.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        result = compare(Path(folder), options)
    if options.json:
        text = json.dumps({"run": about, "model": options.model, **result}, indent=1)
        options.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
