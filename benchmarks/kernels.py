"""Times the GPU kernels against torch's varlen attention and their plain-torch references.

    python benchmarks/kernels.py                   # every model's shape
    python benchmarks/kernels.py --sweep 64 16     # attention's table of configurations, again

Lengths are lognormal(5.45, 0.75) residues, clipped to 20..1022, packed first-fit decreasing into
batches of 4,096 tokens, four batches a step. Steps differ (long sequences are packed first), so
times are means over steps taken evenly from the whole shard. Each time is the median of replays of
a CUDA graph, so launches from Python don't count. Rates count useful work: the floating-point
operations between tokens of one sequence, and each tensor read or written once.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from virnucpro.data.packing import first_fit_decreasing
from virnucpro.model.kernels import QUERY_BLOCK, attention_tiles, reference, tile_capacity

MODELS = {  # dim, heads, layers
    "8M": (320, 20, 6),
    "35M": (480, 20, 12),
    "150M": (640, 20, 30),
    "650M": (1280, 20, 33),
    "3B": (2560, 40, 36),
    "15B": (5120, 40, 48),
}
PLAN_BUDGET = 4096
LONGEST = 1024


def packed_steps(tokens: int, sequences: int = 3000) -> list[np.ndarray]:
    """Give cu_seqlens of every step: planned batches side by side, the tail filled."""
    residues = np.random.default_rng(0).lognormal(5.45, 0.75, sequences).astype(np.int64)
    lengths = np.clip(residues, 20, LONGEST - 2) + 2
    order, batch = first_fit_decreasing(lengths, PLAN_BUDGET)
    together = tokens // PLAN_BUDGET
    steps = []
    for first in range(0, int(batch[-1]) + 2 - together, together):
        chosen = lengths[order[(batch >= first) & (batch < first + together)]]
        spare = tokens - int(chosen.sum())
        filler = np.diff([*range(0, spare, LONGEST), spare])
        steps.append(np.concatenate([[0], np.cumsum(chosen), tokens - spare + np.cumsum(filler)]))
    return [step.astype(np.int32) for step in steps]


def microseconds(run: Callable[[], object], launches: int = 10, replays: int = 5) -> float:
    """Time one launch: median over replays of a graph of several."""
    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(launches):
            run()
    graph.replay()
    times = []
    for _ in range(replays):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / launches * 1e3)
    return float(np.median(times))


class Shape:
    """One model's attention tensors and the steps to run them on."""

    def __init__(self, dim: int, heads: int, tokens: int, dtype: torch.dtype, sample: int) -> None:
        torch.manual_seed(0)
        self.heads, self.head_dim, self.tokens = heads, dim // heads, tokens
        every = packed_steps(tokens)
        self.sequences = max(len(step) - 1 for step in every)
        self.steps = [every[i] for i in np.linspace(0, len(every) - 1, sample).astype(int)]
        self.qkv = torch.randn(tokens, 3, heads, self.head_dim, device="cuda", dtype=dtype)
        self.out = torch.empty(tokens, dim, device="cuda", dtype=dtype)
        half = torch.arange(0, self.head_dim, 2, device="cuda", dtype=torch.float32)
        position = torch.arange(LONGEST, device="cuda", dtype=torch.float32)
        angle = torch.outer(position, 10000.0 ** (-half / self.head_dim))
        self.tables = angle.cos(), angle.sin()

    def tiles(self, step: np.ndarray) -> Tensor:
        """Give a step's tile list at the fixed capacity of the shard."""
        capacity = tile_capacity(self.tokens, self.sequences, QUERY_BLOCK)
        return torch.from_numpy(attention_tiles(step, QUERY_BLOCK, capacity)).cuda()

    def bounds(self, step: np.ndarray) -> Tensor:
        """Give cu_seqlens at the fixed length that a captured graph needs."""
        fixed = np.full(self.sequences + 1, self.tokens, dtype=np.int32)
        fixed[: len(step)] = step
        return torch.from_numpy(fixed).cuda()

    def attention_flop(self) -> float:
        """Mean floating-point operations of a step's attention: two products, 2 each."""
        squares = [float((np.diff(step).astype(float) ** 2).sum()) for step in self.steps]
        return 4 * self.heads * self.head_dim * float(np.mean(squares))


def attention_rows(shape: Shape) -> Iterator[tuple[str, float, float | None]]:
    """Time attention: (what, mean microseconds, floating-point operations)."""
    from virnucpro.model.kernels import attention

    q, k, v = shape.qkv.unbind(1)
    flop, lists = shape.attention_flop(), [shape.tiles(step) for step in shape.steps]
    got = attention.packed_attention(
        shape.qkv, *shape.tables, lists[1], out=shape.out.fill_(torch.nan)
    )
    expected = reference.packed_attention(shape.qkv, *shape.tables, lists[1]).float()
    error = float((got.float() - expected).norm() / expected.norm())
    assert error < (1e-3 if got.dtype == torch.float16 else 8e-3), error

    def mean(run: Callable[..., object], arguments: list[tuple[object, ...]]) -> float:
        return float(np.mean([microseconds(lambda a=a: run(*a)) for a in arguments]))

    def ours(tiles: Tensor) -> Tensor:
        return attention.packed_attention(shape.qkv, *shape.tables, tiles, out=shape.out)

    def keys(tiles: Tensor) -> Tensor:
        return attention._rotated_keys(shape.qkv, *shape.tables, tiles)

    def varlen(bounds: Tensor, longest: int) -> Tensor:
        return varlen_attn(q, k, v, bounds, bounds, longest, longest)

    fixed = [(shape.bounds(step), LONGEST) for step in shape.steps]
    exact = [(torch.from_numpy(s).cuda(), int(np.diff(s).max())) for s in shape.steps]
    yield "attention, rotary included", mean(ours, [(t,) for t in lists]), flop
    yield "  of it rotating the keys", mean(keys, [(t,) for t in lists]), None
    yield "varlen_attn, fixed grid, no rotary", mean(varlen, fixed), flop
    yield "varlen_attn, exact grid, no rotary", mean(varlen, exact), flop


def elementwise_rows(shape: Shape, dim: int) -> Iterator[tuple[str, float, float, float]]:
    """Time the passes: (what, our microseconds, the reference's, bytes of one pass)."""
    from virnucpro.model.kernels import elementwise

    T, options = shape.tokens, {"device": "cuda", "dtype": shape.qkv.dtype}
    x = torch.randn(T, dim, **options)
    wide, wide_bias = torch.randn(T, 4 * dim, **options), torch.randn(4 * dim, **options)
    weight, bias = torch.randn(2, dim, **options)
    bounds, unit = shape.bounds(shape.steps[len(shape.steps) // 2]), x.element_size() * T * dim
    norm = (weight, bias, 1e-5)

    def pair(name: str, arguments: tuple[object, ...]) -> tuple[float, float]:
        functions = [getattr(module, name) for module in (elementwise, reference)]
        ours, plain = (microseconds(lambda f=f: f(*arguments), launches=4) for f in functions)
        return ours, plain

    yield "layer norm", *pair("layer_norm", (x, *norm)), 2 * unit
    yield "bias + GELU", *pair("bias_gelu", (wide, wide_bias)), 8 * unit
    ranges = torch.stack((bounds[:-1] + 1, bounds[1:] - 1), dim=1)
    pooled = microseconds(lambda: elementwise.pool_mean(x, ranges))
    yield "mean pooling", pooled, float("nan"), unit  # the reference cannot be captured in a graph


def sweep(head_dim: int, tokens: int, dtype: torch.dtype) -> None:
    """Print the fastest configurations of attention at a head dimension."""
    from virnucpro.model.kernels import attention

    shape = Shape(head_dim * 20, 20, tokens, dtype, sample=4)
    lists, found = [shape.tiles(step) for step in shape.steps], []
    for keys, tail, stages, registers in itertools.product(
        (32, 64), (None, 32, 64), (2, 3), (None, 96, 128)
    ):
        if tail is not None and tail > keys:
            continue
        config = attention._Config(keys, tail, stages, registers)
        attention._CONFIGS[head_dim] = config
        times = [
            microseconds(
                lambda t=t: attention.packed_attention(shape.qkv, *shape.tables, t, out=shape.out)
            )
            for t in lists
        ]
        found.append((float(np.mean(times)), [round(t) for t in times], config))
    print(f"head dimension {head_dim}, microseconds with rotary: mean, long to short steps")
    for mean, times, config in sorted(found, key=lambda row: row[0])[:5]:
        print(f"  {mean:7.1f} {times} {config}")


def compare(model: str, tokens: int, dtype: torch.dtype, sample: int) -> list[dict[str, object]]:
    """Print and return the table of one model."""
    dim, heads, layers = MODELS[model]
    shape, rows = Shape(dim, heads, tokens, dtype, sample), []
    print(f"\n{model}: dim {dim}, {heads} heads of {dim // heads}, {tokens} tokens", flush=True)
    for name, us, flop in attention_rows(shape):
        rate = "" if flop is None else f"{flop / us / 1e6:7.0f} TFLOP/s"
        print(f"  {name:36} {us:8.1f} us {rate:16} {us * layers / 1e3:7.2f} ms a step")
        rows.append({"model": model, "kernel": name.strip(), "us": us, "flop": flop})
    for name, us, plain, size in elementwise_rows(shape, dim):
        print(
            f"  {name:36} {us:8.1f} us {size / us / 1e3:7.0f} GB/s     plain torch {plain:7.1f} us"
        )
        rows.append(
            {"model": model, "kernel": name, "us": us, "reference_us": plain, "bytes": size}
        )
    return rows


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS)[:5])
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--dtype", choices=["float16", "bfloat16"], default="float16")
    parser.add_argument("--steps", type=int, default=9, help="steps sampled from the shard")
    parser.add_argument("--sweep", nargs="+", type=int, metavar="HEAD_DIM")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    dtype, start = getattr(torch, arguments.dtype), time.perf_counter()
    print(torch.cuda.get_device_name(), "torch", torch.__version__, arguments.dtype)
    for head_dim in arguments.sweep or ():
        sweep(head_dim, arguments.tokens, dtype)
    rows = []
    if not arguments.sweep:
        for model in arguments.models:
            rows += compare(model, arguments.tokens, dtype, arguments.steps)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")
    print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
