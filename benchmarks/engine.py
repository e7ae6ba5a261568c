"""Times the engine beside the programs that a user might take instead.

    python benchmarks/engine.py                                  # the default models on a GPU
    python benchmarks/engine.py --models 8M --device cpu --sequences 200 --tokens 4096

One process, one device, the same random proteins and the same random weights for all: speed does
not depend on the weights, and closeness to fair-esm in float32 is that of these weights. Rates
count tokens of sequences, BOS and EOS included, neither filler nor padding. The ceiling is the four
matrix products of each layer at the same tokens a step, and nothing else. Ours is timed from
strings to pooled vectors on the CPU; the peers as `peers` says. A pass takes batches evenly from
the whole set; the median of the passes counts.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType

import esm
import numpy as np
import torch
from peers import (
    EXTRACT_TOKENS,
    LONGEST,
    MODELS,
    Batch,
    EsmEfficient,
    FairEsm,
    FairEsmHalf,
    HuggingFace,
    HuggingFacePacked,
    NotInstalledError,
    Runner,
    describe_run,
    flash_attention_is_there,
    full_bins,
    random_fair_esm,
    random_proteins,
    token_counts,
)
from torch import Tensor, nn

from virnucpro.data.collators import VarlenCollator
from virnucpro.embed.batch import PackedBatch
from virnucpro.embed.engine import Engine
from virnucpro.embed.readout import Readout
from virnucpro.embed.step import StepShape
from virnucpro.model.canonical import canonical_state
from virnucpro.model.config import ModelConfig
from virnucpro.model.devices import DTYPES
from virnucpro.model.loading import build_model

PLAN_TOKENS = 4096  # planned batches; as many as fit run side by side in a step
COMPARED = 64  # sequences whose pooled vectors are compared with float32
BASELINE = "esm-efficient"


@dataclass
class Row:
    """One line of a model's table; tokens a second, bytes, cosines to fair-esm float32."""

    model: str
    variant: str
    rate: float | None = None
    memory: int | None = None
    cosine_min: float | None = None
    cosine_median: float | None = None
    warm_up: float | None = None
    note: str = ""
    failed: bool = False


class Ours:
    """The engine as the package runs it: collated, computed, pooled and copied back."""

    def __init__(
        self,
        config: ModelConfig,
        state: dict[str, Tensor],
        sequences: Sequence[str],
        device: torch.device,
        budget: int,
        *,
        dtype: str,
        attention: str = "auto",
    ) -> None:
        self.model = build_model(
            config, state, dtype=DTYPES[dtype], device=device, attention=attention
        )
        self.counts, self.tokens = token_counts(sequences), budget
        self.items = [{"id": str(i), "sequence": s} for i, s in enumerate(sequences)]
        converter = esm.data.Alphabet.from_architecture("ESM-1b").get_batch_converter()
        self.collate = VarlenCollator(converter, max_tokens_per_batch=budget, sort_by_length=False)
        everything = self.batches(np.arange(len(sequences)))
        few = self.batches(np.arange(min(COMPARED, len(sequences))))
        most = max(len(batch.index) for batch in everything + few)
        shape = StepShape.for_lengths(budget, most, LONGEST + 2)
        self.engine = Engine(self.model, shape, Readout([config.layers]))

    def batches(self, index: np.ndarray) -> list[Batch]:
        """Pack as a planned shard is: batches of the plan's size, side by side in a step."""
        planned = PLAN_TOKENS if self.tokens % PLAN_TOKENS == 0 else self.tokens
        bins, together = full_bins(self.counts[index], planned), self.tokens // planned
        steps = [np.concatenate(bins[i : i + together]) for i in range(0, len(bins), together)]
        return [Batch(index[step], [self.items[i] for i in index[step]]) for step in steps]

    def embed(self, batches: Sequence[Batch]) -> Iterator[Tensor]:
        """Compute from strings."""
        for _, result in self.engine.stream(
            PackedBatch.from_collated(self.collate(batch.payload)) for batch in batches
        ):
            yield torch.from_numpy(result.pooled[:, 0])


def make_variants(
    config: ModelConfig,
    source: nn.Module,
    sequences: Sequence[str],
    device: torch.device,
    tokens: int,
) -> dict[str, Callable[[], Runner]]:
    """Give what can be measured on the device, by name."""
    state = canonical_state(config, source.state_dict(), Path("random weights"))
    given = (sequences, device, tokens)

    def ours(dtype: str, attention: str = "auto") -> Callable[[], Runner]:
        return lambda: Ours(config, state, *given, dtype=dtype, attention=attention)

    cuda = device.type == "cuda"
    half = [name for name in DTYPES if name != "float32"]
    chosen = half if cuda else [name for name in DTYPES if name in ("float32", "bfloat16")]
    variants = {f"ours {name}": ours(name) for name in chosen}
    if cuda:
        variants["ours float16, torch's varlen attention"] = ours("float16", "varlen")
    for name in ("float16", "float32") if cuda else chosen:
        variants[f"ours {name}, no packed kernel, padded"] = ours(name, "padded")
    if cuda:
        variants["ours float16, no packed kernel, a call a sequence"] = ours("float16", "sdpa")
    variants["fair-esm float32, sorted padding, 4,096 (extract.py)"] = lambda: FairEsm(
        source, sequences, device, EXTRACT_TOKENS
    )
    if cuda:
        variants[f"fair-esm .half(), sorted padding, {tokens:,}"] = lambda: FairEsmHalf(
            source, *given
        )
    else:
        variants["Hugging Face sdpa float32, sorted padding"] = lambda: HuggingFace(
            source, *given, dtype=torch.float32
        )
    variants["Hugging Face sdpa bfloat16, sorted padding"] = lambda: HuggingFace(source, *given)
    variants["Hugging Face sdpa bfloat16, sorted padding, torch.compile"] = lambda: HuggingFace(
        source, *given, compiled=True
    )
    variants["Hugging Face bfloat16, packed"] = lambda: HuggingFacePacked(source, *given)
    variants[f"{BASELINE} bfloat16, packed"] = lambda: EsmEfficient(source, *given)
    return variants


class TooSlowError(Exception):
    """A warm-up took longer than is allowed."""


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """End what runs inside, compilation for the most part, after some seconds."""

    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise TooSlowError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Meter:
    """Measures programs on one device.

    Args:
        counts: tokens of every sequence.
        device: where they run.
        seconds: least duration of a measurement.
        warm_up_limit: most seconds of a first pass.
    """

    def __init__(
        self, counts: np.ndarray, device: torch.device, seconds: float, warm_up_limit: float
    ) -> None:
        self.counts, self.device = counts, device
        self.seconds, self.warm_up_limit = seconds, warm_up_limit

    def time(self, runner: Runner, batches: Sequence[Batch]) -> float:
        """Compute batches once; seconds."""
        self._synchronise()
        start = time.perf_counter()
        for _ in runner.embed(batches):
            pass
        self._synchronise()
        return time.perf_counter() - start

    def tokens(self, batches: Sequence[Batch]) -> int:
        """Count the real tokens of batches."""
        return int(sum(self.counts[batch.index].sum() for batch in batches))

    def rate(self, runner: Runner, row: Row) -> None:
        """Put warm-up, rate and memory into the row."""
        batches = runner.batches(np.arange(len(self.counts)))
        batches = batches[:-1] or batches  # the last is partly filled, once in a whole shard
        with time_limit(self.warm_up_limit):
            row.warm_up = self.time(runner, evenly(batches, 3))
        estimate = self.tokens(batches) / len(batches) * 3 / self.time(runner, evenly(batches, 3))
        wanted = estimate * self.seconds / 3 / self.tokens(batches) * len(batches)
        chosen = evenly(batches, max(8, round(wanted)))
        passes: list[float] = []
        while len(passes) < 3 or sum(passes) < self.seconds:
            passes.append(self.time(runner, chosen))
        row.rate = self.tokens(chosen) / float(np.median(passes))

    def pooled(self, runner: Runner) -> np.ndarray:
        """Compute the first sequences, [sequences, dim] float64."""
        index = np.arange(min(COMPARED, len(self.counts)))
        batches = runner.batches(index)
        order = np.concatenate([batch.index for batch in batches])
        vectors = torch.cat([part.float() for part in runner.embed(batches)]).double().numpy()
        return vectors[np.argsort(order)]

    def ceiling(self, config: ModelConfig, tokens: int) -> float:
        """Time the four matrix products of each layer and nothing else; tokens a second."""
        cuda = self.device.type == "cuda"
        options = {"device": self.device, "dtype": torch.float16 if cuda else torch.float32}
        dim = config.dim
        shapes = [(dim, 3 * dim), (dim, dim), (dim, 4 * dim), (4 * dim, dim)]
        rows = {width: torch.randn(tokens, width, **options) for width in (dim, 4 * dim)}
        layers = [
            [(rows[m], torch.randn(n, m, **options) * m**-0.5) for m, n in shapes]
            for _ in range(config.layers)
        ]
        outputs = {n: torch.empty(tokens, n, **options) for _, n in shapes}

        @torch.inference_mode()
        def products() -> None:
            for layer in layers:
                for x, weight in layer:
                    torch.mm(x, weight.t(), out=outputs[len(weight)])

        run = captured(products) if cuda else products
        seconds: list[float] = []
        while len(seconds) < 4 or sum(seconds) < min(self.seconds, 1.0):
            self._synchronise()
            start = time.perf_counter()
            run()
            self._synchronise()
            seconds.append(time.perf_counter() - start)
        return tokens / float(np.median(seconds[1:]))

    def _synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def captured(run: Callable[[], None]) -> Callable[[], None]:
    """Capture work of the device in a CUDA graph, so that launches don't count."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def evenly(batches: Sequence[Batch], count: int) -> list[Batch]:
    """Take some batches at even distances, long and short sequences alike."""
    count = min(count, len(batches))
    return [batches[i] for i in np.linspace(0, len(batches) - 1, count).astype(int)]


def allocated(device: torch.device) -> int:
    """Give the bytes in use on the device, 0 on a CPU."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def free_memory() -> None:
    """Give back what a program left behind."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def measure(
    model: str,
    name: str,
    make: Callable[[], Runner],
    meter: Meter,
    expected: np.ndarray,
) -> Row:
    """Measure one variant; what goes wrong with it becomes its note."""
    row, device = Row(model, name, note=remark(name, meter.device)), meter.device
    try:
        before = allocated(device)
        runner = make()
        free_memory()
        weights = sum(p.numel() * p.element_size() for p in runner.model.parameters())
        loaded = allocated(device)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        meter.rate(runner, row)
        if device.type == "cuda":  # the source of the weights is fair-esm's own model: no extra
            peak = torch.cuda.max_memory_allocated(device) - loaded
            row.memory = peak + max(loaded - before, weights)
        got = meter.pooled(runner)
        products = (got * expected).sum(axis=1)
        cosines = products / np.linalg.norm(got, axis=1) / np.linalg.norm(expected, axis=1)
        row.cosine_min, row.cosine_median = float(cosines.min()), float(np.median(cosines))
    except NotInstalledError as error:
        row.note = f"not installed: {error}"
    except TooSlowError:
        row.note = f"skipped: warm-up over {meter.warm_up_limit:.0f} s"
    except Exception as error:  # one peer's failure must not end the table
        row.failed = True
        row.note = f"failed: {type(error).__name__}: {(str(error) or '-').splitlines()[0][:120]}"
    return row


def remark(name: str, device: torch.device) -> str:
    """Say what was done to a peer that its documents don't say."""
    if "torch.compile" in name:
        return "each layer compiled, dynamic=True"
    kernel = "torch's varlen_attn" if device.type == "cuda" else "one SDPA call a sequence"
    if name.startswith(BASELINE) and not flash_attention_is_there():
        return f"its flash_attn is served by {kernel}"
    if name.startswith("Hugging Face") and "packed" in name:
        return f"registered as attention: {kernel}"
    return ""


def print_table(rows: Sequence[Row], ceiling: float) -> None:
    """Print a model's rows as markdown."""
    rates = [row.rate for row in rows if row.variant.startswith(BASELINE) and row.rate]
    heads = ("variant", "tokens/s", f"to {BASELINE}", "of the ceiling", "peak GB")
    heads += ("cosine min", "cosine median", "note")
    print("| " + " | ".join(heads) + " |")
    print("|:---|" + "---:|" * (len(heads) - 2) + ":---|")
    for row in rows:
        cells = (
            row.variant,
            shown(row.rate, ",.0f"),
            shown(row.rate / rates[0] if row.rate and rates else None, ".2f"),
            shown(row.rate / ceiling if row.rate else None, ".3f"),
            shown(row.memory / 1e9 if row.memory else None, ".2f"),
            shown(row.cosine_min, ".6f"),
            shown(row.cosine_median, ".6f"),
            row.note,
        )
        print("| " + " | ".join(cells) + " |")


def shown(value: float | None, form: str) -> str:
    """Format a number, or a dash for none."""
    return "-" if value is None else format(value, form)


def compare(model: str, options: argparse.Namespace) -> tuple[float, list[Row]]:
    """Measure all variants of a model and print its table; the ceiling and the rows."""
    config, device, start = MODELS[model], options.device, time.perf_counter()
    sequences = random_proteins(options.sequences, options.seed)
    meter = Meter(token_counts(sequences), device, options.seconds, options.warm_up_limit)
    ceiling = meter.ceiling(config, options.tokens)
    free_memory()
    source = random_fair_esm(config, device, options.seed)
    expected = meter.pooled(FairEsm(source, sequences, device, EXTRACT_TOKENS))
    variants = make_variants(config, source, sequences, device, options.tokens)
    rows = []
    for name, make in variants.items():
        if options.only and not any(part in name for part in options.only):
            continue
        rows.append(measure(model, name, make, meter, expected))
        free_memory()
        warm_up = shown(rows[-1].warm_up, ".1f")
        rate = shown(rows[-1].rate, ",.0f")
        print(f"{model} {name}: {rate} tokens/s, warm-up {warm_up} s", file=sys.stderr, flush=True)
    kind = "float16" if device.type == "cuda" else "float32"
    print(
        f"\n## ESM-2 {model}\n\n{options.sequences:,} sequences, {meter.counts.sum():,} tokens, "
        f"{options.tokens:,} a step; ceiling ({kind} matrix products only) {ceiling:,.0f} "
        f"tokens/s; {time.perf_counter() - start:.0f} s in all\n"
    )
    print_table(rows, ceiling)
    sys.stdout.flush()
    return ceiling, rows


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--models", type=lambda text: text.split(","), default=["8M", "35M", "150M", "650M", "3B"]
    )
    parser.add_argument("--sequences", type=int, default=4000)
    parser.add_argument("--tokens", type=int, default=16384, help="tokens a step")
    parser.add_argument("--seconds", type=float, default=3.0, help="of a measurement, at least")
    parser.add_argument("--warm-up-limit", type=float, default=60.0, metavar="SECONDS")
    parser.add_argument(
        "--only", type=lambda text: text.split(","), help="only variants with this in their name"
    )
    parser.add_argument("--device", type=torch.device, default=None)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if unknown := set(options.models) - set(MODELS):
        parser.error(f"unknown models {', '.join(sorted(unknown))}: {', '.join(MODELS)}")
    if options.device is None:
        options.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return options


def main() -> int:
    """Print the tables; 1 if a variant failed."""
    options = parse()
    about = describe_run(options.device)
    print("\n".join(f"- {line}" for line in about), flush=True)
    found, failed = [], False
    for model in options.models:
        ceiling, rows = compare(model, options)
        free_memory()
        failed = failed or any(row.failed for row in rows)
        found.append({"model": model, "ceiling": ceiling, "rows": [asdict(row) for row in rows]})
    if options.json:
        options.json.write_text(json.dumps({"run": about, "models": found}, indent=1) + "\n")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
