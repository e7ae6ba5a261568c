"""How many tokens one step should compute on a device: measured, not assumed.

Two probe steps of different size give the bytes a token costs; the free memory gives the largest
step; timing a few sizes gives the smallest one that is as good as the best. The result is measured
once a run and used by all shards: one number of tokens a step is what makes their bits comparable.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path

import torch

from virnucpro.data.packing import calculate_token_budget
from virnucpro.embed.budget import Budget, write_budget
from virnucpro.embed.probe import measure_rate, probe
from virnucpro.embed.rates import record_rate
from virnucpro.embed.readout import Readout
from virnucpro.embed.request import make_readout
from virnucpro.errors import VirnucproError
from virnucpro.model.devices import device_name, select_device, select_dtype
from virnucpro.model.esm2 import PackedESM2
from virnucpro.model.loading import load_model
from virnucpro.model.receipt import read_receipt
from virnucpro.sequences.alphabet import SPECIAL_TOKENS

__all__ = ["measure_budget", "write_measured_budget"]

logger = logging.getLogger(__name__)

_GIB = 1024**3
_LARGEST_STEP = 65_536  # tokens; measured rates fall again beyond it
_GOOD_ENOUGH = 0.98  # of the best rate
_TIMED_SECONDS = 0.3


def write_measured_budget(
    weights: Path,
    receipt: Path,
    out: Path,
    *,
    device: str = "auto",
    dtype: str = "auto",
    plan_token_budget: int = 4096,
    max_sequence_length: int = 1022,
    layers: Sequence[int] = (-1,),
    pooling: str = "mean",
    pseudo_perplexity: str = "none",
    output_dtype: str = "float32",
    cache_dir: Path | None = None,
    weights_sha256: Future[str] | None = None,
) -> Budget:
    """Measure the token budget of converted weights on a device, and write it.

    Args:
        weights: the converted weights.
        receipt: their receipt.
        out: the JSON file to write.
        device: see `virnucpro.model.devices.select_device`.
        dtype: ``auto``, ``float32``, ``float16``, ``bfloat16`` or ``float8``.
        plan_token_budget: tokens of a planned batch.
        max_sequence_length: longest sequence, in residues.
        layers: what the jobs will be asked for, as are the next three: the steps that are tried
            give just that, see `virnucpro.embed.request.make_readout`.
        pooling: see there.
        pseudo_perplexity: see there.
        output_dtype: see there.
        cache_dir: where the rate is kept for later estimates.
        weights_sha256: the hash of the weights, where it was begun before.

    Raises:
        InputError: the device, the dtype, a layer or the head is not there.
        DataError: the weights are damaged or not those of the receipt.
        VirnucproError: the device has no memory for one sequence of the maximum length.
    """
    facts = read_receipt(receipt)
    readout = make_readout(
        facts,
        receipt,
        layers=layers,
        pooling=pooling,
        pseudo_perplexity=pseudo_perplexity,
        output_dtype=output_dtype,
    )
    chosen_device, why_device = select_device(device)
    chosen_dtype, why_dtype = select_dtype(dtype, chosen_device)
    logger.info(
        "device: %s (%s); dtype: %s (%s)", chosen_device, why_device, chosen_dtype, why_dtype
    )
    model = load_model(
        *(weights, receipt),
        dtype=chosen_dtype,
        device=chosen_device,
        head=readout.likelihood,
        sha256=weights_sha256,
    )
    budget = measure_budget(
        model,
        facts.weights_sha256,
        readout,
        plan_token_budget=plan_token_budget,
        max_seqlen=max_sequence_length + SPECIAL_TOKENS,
    )
    write_budget(out, budget)
    if cache_dir is not None:
        record_rate(cache_dir, budget.device, budget.model, budget.dtype, budget.tokens_per_second)
    return budget


def measure_budget(
    model: PackedESM2,
    weights_sha256: str,
    readout: Readout,
    *,
    plan_token_budget: int,
    max_seqlen: int,
) -> Budget:
    """Find the tokens a step should have for a model on its device.

    On a CUDA device T is the smallest multiple of the plan's budget that reaches 98% of the best
    rate among the sizes that fit into the free memory, or less than the plan's budget where that
    does not fit. On a CPU larger steps bring nothing, so T is the plan's budget.

    Args:
        model: the model on its device.
        weights_sha256: goes into the result.
        readout: what the steps of a job give.
        plan_token_budget: tokens of a planned batch.
        max_seqlen: longest sequence, in tokens.

    Raises:
        VirnucproError: the device has no memory for one sequence of the maximum length.
    """
    device = model.device
    if device.type != "cuda":
        rate = _rate(model, readout, max_seqlen, max_seqlen)
        return _budget(
            model,
            weights_sha256,
            readout,
            plan_token_budget,
            None,
            {max_seqlen: rate},
            "on a CPU larger steps bring nothing: the plan's budget",
        )
    bytes_per_token = _bytes_per_token(model, readout, max_seqlen)
    free, total = torch.cuda.mem_get_info(device)
    limit = calculate_token_budget(
        device_id=device.index or 0,
        model_memory_gb=(
            total - free - torch.cuda.memory_reserved(device) + torch.cuda.memory_allocated(device)
        )
        / _GIB,
        safety_margin_gb=0.05 * total / _GIB,
        bytes_per_token=int(bytes_per_token) + 1,
        min_tokens=max_seqlen,
        max_tokens=max(_LARGEST_STEP, plan_token_budget),
    )
    rates = _rates(model, readout, plan_token_budget, limit, max_seqlen)
    if not rates:
        tokens = min(limit, max(plan_token_budget // 2, max_seqlen))
        rates = _rate_of_largest(model, readout, tokens, max_seqlen)
    best = max(rates.values())
    chosen = min(tokens for tokens, rate in rates.items() if rate >= _GOOD_ENOUGH * best)
    reason = f"smallest within 2% of the best rate; memory for about {limit} tokens"
    return _budget(model, weights_sha256, readout, chosen, bytes_per_token, rates, reason)


def _budget(
    model: PackedESM2,
    weights_sha256: str,
    readout: Readout,
    tokens: int,
    bytes_per_token: float | None,
    rates: dict[int, float],
    reason: str,
) -> Budget:
    """Put a measurement together and say what was found."""
    budget = Budget(
        model=model.config.name,
        weights_sha256=weights_sha256,
        device=device_name(model.device),
        dtype=model.precision,
        backend=model.backend.name,
        tokens_per_step=tokens,
        bytes_per_token=bytes_per_token,
        tokens_per_second=rates.get(tokens, max(rates.values())),
        readout=readout.facts(),
        rates={str(size): round(rate, 1) for size, rate in rates.items()},
        reason=reason,
    )
    logger.info(
        "token budget of %s on %s: %d tokens a step (%s)",
        budget.model,
        budget.device,
        tokens,
        reason,
    )
    return budget


def _rates(
    model: PackedESM2, readout: Readout, smallest: int, largest: int, max_seqlen: int
) -> dict[int, float]:
    """Time doubling step sizes; stops where the device runs out of memory after all."""
    rates: dict[int, float] = {}
    tokens = smallest
    while tokens <= largest:
        try:
            rates[tokens] = _rate(model, readout, tokens, max_seqlen)
        except torch.cuda.OutOfMemoryError:
            torch.cuda.empty_cache()
            break
        tokens *= 2
    return rates


def _rate_of_largest(
    model: PackedESM2, readout: Readout, tokens: int, max_seqlen: int
) -> dict[int, float]:
    """Time the largest step below a planned batch that the device has memory for."""
    while tokens >= max_seqlen:
        try:
            return {tokens: _rate(model, readout, tokens, max_seqlen)}
        except torch.cuda.OutOfMemoryError:
            torch.cuda.empty_cache()
            # The last try is a step for one sequence of the maximum length.
            tokens = max(tokens // 2, max_seqlen) if tokens > max_seqlen else 0
    raise _no_memory(model, max_seqlen)


def _no_memory(model: PackedESM2, max_seqlen: int) -> VirnucproError:
    """Say that the device cannot do the work at all."""
    return VirnucproError(
        f"{device_name(model.device)} has no memory for steps of {max_seqlen} tokens",
        hint="free the device, use a smaller model, or lower plan.max_sequence_length",
    )


def _rate(model: PackedESM2, readout: Readout, tokens: int, max_seqlen: int) -> float:
    """Time steps for as long as a size is tried; as `measure_rate`."""
    return measure_rate(model, readout, tokens, max_seqlen, _TIMED_SECONDS)


def _bytes_per_token(model: PackedESM2, readout: Readout, max_seqlen: int) -> float:
    """Return the slope of memory over tokens, from two probes; smaller ones on a small device."""
    for tokens in (4 * max_seqlen, max_seqlen):
        try:
            _peak_bytes(model, readout, tokens, max_seqlen)  # libraries take their workspace once
            small, large = (
                _peak_bytes(model, readout, size, max_seqlen) for size in (tokens, 2 * tokens)
            )
        except torch.cuda.OutOfMemoryError:
            torch.cuda.empty_cache()
            continue
        return max((large - small) / tokens, 1.0)
    raise _no_memory(model, max_seqlen)


def _peak_bytes(model: PackedESM2, readout: Readout, tokens: int, max_seqlen: int) -> int:
    """Return the memory that a step takes beside the weights."""
    engine, step = probe(model, readout, tokens, max_seqlen)
    before = torch.cuda.memory_allocated(model.device)
    torch.cuda.reset_peak_memory_stats(model.device)
    engine.forward(step, engine.shape).pooled.cpu()
    return torch.cuda.max_memory_allocated(model.device) - before
