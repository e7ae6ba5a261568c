"""Times what can be read out of the model, beside the mean alone.

    python benchmarks/readouts.py --model 650M                   # on a GPU
    python benchmarks/readouts.py --model 8M --device cpu --sequences 200 --tokens 4096

One process, one model with random weights and its language-model head, the same packed batches for
all, from tokens to values on the CPU; for single residues too, which are not written anywhere. The
variants take turns, and the median of the passes counts.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import esm
import numpy as np
import torch
from peers import LONGEST, MODELS, describe_run, full_bins, random_fair_esm, random_proteins
from peers import token_counts as count_tokens

from virnucpro.data.collators import VarlenCollator
from virnucpro.embed.batch import PackedBatch
from virnucpro.embed.engine import Engine
from virnucpro.embed.readout import Readout
from virnucpro.embed.step import StepShape
from virnucpro.model.canonical import canonical_state
from virnucpro.model.devices import DTYPES, select_device, select_dtype
from virnucpro.model.loading import build_model

VARIANTS: dict[str, dict[str, Any]] = {
    "mean": {},
    "cls": {"pooling": "cls"},
    "max": {"pooling": "max"},
    "mean, pseudo-perplexity": {"likelihood": True},
    "none, float16": {"pooling": "none", "residues": torch.float16},
    "none, float32": {"pooling": "none", "residues": torch.float32},
}


def passes(options: argparse.Namespace, device: torch.device) -> Iterator[tuple[str, float]]:
    """Yield a variant and its tokens a second, again and again."""
    config = MODELS[options.model]
    source = random_fair_esm(config, device)
    state = canonical_state(config, source.state_dict(), Path("random weights"))
    dtype = DTYPES[options.dtype] if options.dtype else select_dtype("auto", device)[0]
    model = build_model(config, state, dtype=dtype, device=device, head=True)
    sequences = random_proteins(options.sequences, options.seed)
    tokens = count_tokens(sequences)
    converter = esm.data.Alphabet.from_architecture("ESM-1b").get_batch_converter()
    collate = VarlenCollator(converter, max_tokens_per_batch=options.tokens, sort_by_length=False)
    bins = full_bins(tokens, options.tokens)
    items = [{"id": str(i), "sequence": sequence} for i, sequence in enumerate(sequences)]
    batches = [PackedBatch.from_collated(collate([items[i] for i in bin])) for bin in bins]
    shape = StepShape.for_lengths(options.tokens, max(map(len, bins)), LONGEST + 2)

    def run(engine: Engine) -> Callable[[], float]:
        def one() -> float:
            start = time.perf_counter()
            for _ in engine.stream(batches):
                pass
            return float(tokens.sum()) / (time.perf_counter() - start)

        return one

    runs = {
        name: run(Engine(model, shape, Readout([config.layers], **wanted)))
        for name, wanted in VARIANTS.items()
    }
    for one in runs.values():
        one()  # compile, capture
    for name, one in chain.from_iterable([runs.items()] * options.passes):
        yield name, one()


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=MODELS, default="650M")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", choices=[d for d in DTYPES if d != "float8"])
    parser.add_argument("--sequences", type=int, default=4000)
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    device, _ = select_device(options.device)
    print("\n".join(f"- {line}" for line in describe_run(device)))
    rates: dict[str, list[float]] = {}
    for name, rate in passes(options, device):
        rates.setdefault(name, []).append(rate)
    mean = np.median(rates["mean"])
    print("\n| read out | tokens/s | of the mean alone |\n|:---|---:|---:|")
    for name, found in rates.items():
        print(f"| {name} | {np.median(found):,.0f} | {np.median(found) / mean:.3f} |")


if __name__ == "__main__":
    main()
