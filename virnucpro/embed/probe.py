"""Steps that are tried: full ones of random residues, and the rate at which these are computed."""

from __future__ import annotations

import time

import numpy as np
import torch

from virnucpro.embed.batch import PackedBatch
from virnucpro.embed.engine import Engine
from virnucpro.embed.readout import Readout
from virnucpro.embed.step import Step, StepShape
from virnucpro.model.esm2 import PackedESM2

__all__ = ["measure_rate", "probe"]


def measure_rate(
    model: PackedESM2, readout: Readout, tokens: int, max_seqlen: int, seconds: float
) -> float:
    """Time steps of protein-like lengths.

    Args:
        model: the model on its device.
        readout: what the steps give.
        tokens: T, tokens of a step.
        max_seqlen: longest sequence, in tokens.
        seconds: how long to go on; one step is timed at least.

    Returns:
        Tokens a second.
    """
    engine, step = probe(model, readout, tokens, max_seqlen)
    if model.device.type == "cuda":
        engine.forward(step, engine.shape).pooled.cpu()  # start-up of kernels and libraries
    steps, start = 0, time.perf_counter()
    while steps < 1 or time.perf_counter() - start < seconds:
        engine.forward(step, engine.shape).pooled.cpu()
        steps += 1
    return tokens * steps / (time.perf_counter() - start)


def probe(model: PackedESM2, readout: Readout, tokens: int, max_seqlen: int) -> tuple[Engine, Step]:
    """Make a full step of random residues, its lengths spread as those of viral proteins.

    Args:
        model: the model on its device.
        readout: what the step gives.
        tokens: T, tokens of the step.
        max_seqlen: longest sequence, in tokens.
    """
    random = np.random.default_rng(0)
    lengths = (random.lognormal(5.45, 0.75, size=tokens // 3).astype(int) + 2).clip(3, max_seqlen)
    ends = np.cumsum(lengths)
    lengths = lengths[: max(int(np.searchsorted(ends, tokens, side="right")), 1)].clip(max=tokens)
    bounds = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    positions = (np.arange(bounds[-1]) - np.repeat(bounds[:-1], lengths)).astype(np.int32)
    batch = PackedBatch(
        torch.from_numpy(random.integers(4, 24, size=int(bounds[-1]))),
        torch.from_numpy(positions),
        torch.from_numpy(bounds),
    )
    shape = StepShape.for_lengths(tokens, len(lengths), max_seqlen)
    return Engine(model, shape, readout), Step.from_batch(batch, shape)
