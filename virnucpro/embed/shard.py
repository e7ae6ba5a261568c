"""Embeds one planned shard: plan and sequences in, an array and its receipt out.

The order of the work: check what is given, reserve the output's space, load the model, run the
planned batches, verify that every sequence has its row, and only then give the files their names,
the array first and the receipt last. A shard without a receipt does not exist.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import esm
import numpy as np
import torch

from virnucpro import __version__
from virnucpro.data.collators import VarlenCollator
from virnucpro.data.dataloader_utils import create_async_dataloader
from virnucpro.data.dataset import SequenceDataset
from virnucpro.embed.budget import Budget, measure_budget, read_budget
from virnucpro.embed.engine import Engine
from virnucpro.embed.output import ShardOutput
from virnucpro.embed.step import StepShape
from virnucpro.errors import DataError, InputError
from virnucpro.files import atomic_path, read_json, sha256_of, write_bytes, write_json
from virnucpro.formats import EMBED_FORMAT
from virnucpro.model.devices import device_name, select_device, select_dtype
from virnucpro.model.esm2 import PackedESM2
from virnucpro.model.weights import load_weights, verify_model
from virnucpro.plan.first_fit import SPECIAL_TOKENS
from virnucpro.plan.plan import Plan, read_plan
from virnucpro.progress import Progress

__all__ = ["EmbedOptions", "ShardFiles", "embed_shard"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ShardFiles:
    """The files of one shard: what is read, and what is written."""

    shard: Path
    plan: Path
    weights: Path
    model_receipt: Path
    budget: Path
    embeddings: Path
    receipt: Path
    trace: Path


@dataclass(frozen=True)
class EmbedOptions:
    """What to compute and on what.

    Attributes:
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        dtype: ``auto``, ``float16``, ``bfloat16`` or ``float32``.
        layers: representations to keep; negative ones count from the end.
        pooling: ``mean``.
        output_dtype: ``float32`` or ``float16``, of the array.
        token_budget: no step is larger than this; None for what was measured.
    """

    device: str = "auto"
    dtype: str = "auto"
    layers: tuple[int, ...] = (-1,)
    pooling: str = "mean"
    output_dtype: str = "float32"
    token_budget: int | None = None


def embed_shard(files: ShardFiles, options: EmbedOptions) -> dict[str, Any]:
    """Embed a planned shard, unless its receipt says that just this was done already.

    Args:
        files: where things are.
        options: what to compute and on what.

    Returns:
        The receipt.

    Raises:
        InputError: the options ask for a device, dtype or layer that is not there.
        DataError: plan, shard, weights or token budget are damaged or do not belong together, or
            the space for the result is not there.
    """
    plan = read_plan(files.plan)
    dataset = SequenceDataset(files.shard, plan=plan)
    model_receipt = read_json(files.model_receipt)
    device, dtype = _device_and_dtype(options)
    wanted = _identity(files, plan, model_receipt, device, dtype, options)
    if (finished := _finished(files, wanted)) is not None:
        logger.info("shard %s is finished already: its receipt and its bytes agree", files.shard)
        return finished

    shape = (_sequences(plan), len(options.layers), int(model_receipt["dim"]))
    with atomic_path(files.embeddings) as temporary:
        output = ShardOutput(temporary, shape, options.output_dtype)
        model = _load_model(files, device, dtype)
        tokens = _tokens_per_step(files, model, plan, options, model_receipt)
        _run(dataset, plan, model, files, tokens, output, options)
        output.finish()
        digest = sha256_of(temporary)
    receipt = {
        **wanted,
        "array_sha256": digest,
        "shape": list(shape),
        "layers": [model.resolve_layer(layer) for layer in options.layers],
        "backend": model.attend.name,
        "tokens_per_step": tokens,
        **output.summary(),
    }
    write_bytes(files.trace, output.trace())
    write_json(files.receipt, receipt)
    return receipt


def _device_and_dtype(options: EmbedOptions) -> tuple[torch.device, torch.dtype]:
    """Choose device and dtype, and say why."""
    if options.pooling != "mean":
        raise InputError(f"unknown pooling {options.pooling!r}", hint="mean")
    device, why_device = select_device(options.device)
    dtype, why_dtype = select_dtype(options.dtype, device)
    logger.info("device: %s (%s)", device_name(device), why_device)
    logger.info("dtype: %s (%s)", str(dtype).removeprefix("torch."), why_dtype)
    return device, dtype


def _identity(
    files: ShardFiles,
    plan: Plan,
    model_receipt: dict[str, Any],
    device: torch.device,
    dtype: torch.dtype,
    options: EmbedOptions,
) -> dict[str, Any]:
    """Give the part of the receipt that is known beforehand and says what was asked for."""
    return {
        "format": EMBED_FORMAT,
        "shard": files.shard.stem,
        "plan_hash": plan.content_hash,
        "sequences": _sequences(plan),
        "model": model_receipt["name"],
        "weights_sha256": model_receipt["weights_sha256"],
        "demo": model_receipt["demo"],
        "requested_layers": list(options.layers),
        "pooling": options.pooling,
        "compute_dtype": str(dtype).removeprefix("torch."),
        "dtype": options.output_dtype,
        "device": device_name(device),
        "versions": {"virnucpro": __version__, "torch": torch.__version__},
    }


def _finished(files: ShardFiles, wanted: dict[str, Any]) -> dict[str, Any] | None:
    """Give the receipt of a whole earlier result of the same request, or None."""
    if not (files.receipt.exists() and files.embeddings.exists() and files.trace.exists()):
        return None
    try:
        receipt = read_json(files.receipt)
    except DataError as error:
        logger.warning("%s: computing the shard again", error)
        return None
    differing = [key for key, value in wanted.items() if receipt.get(key) != value]
    if differing:
        logger.info("an earlier result differs in %s: computing again", ", ".join(differing))
        return None
    if sha256_of(files.embeddings) != receipt.get("array_sha256"):
        logger.warning("%s does not match its receipt: computing again", files.embeddings)
        return None
    return receipt


def _sequences(plan: Plan) -> int:
    """Count the sequences of a plan; every one has an item, so the rows are 0 to the largest."""
    return int(plan.row.max()) + 1 if plan.items else 0


def _load_model(files: ShardFiles, device: torch.device, dtype: torch.dtype) -> PackedESM2:
    """Load the weights onto the device, while they are hashed and compared with their receipt."""
    start = time.perf_counter()
    with ThreadPoolExecutor(max_workers=1) as pool:
        check = pool.submit(verify_model, files.weights, files.model_receipt)
        config, state = load_weights(files.weights, None)
        model = PackedESM2.from_state_dict(config, state, dtype=dtype, device=device)
        check.result()
    logger.info(
        "model: %s, %s attention, loaded in %.1f s",
        config.name,
        model.attend.name,
        time.perf_counter() - start,
    )
    return model


def _tokens_per_step(
    files: ShardFiles,
    model: PackedESM2,
    plan: Plan,
    options: EmbedOptions,
    model_receipt: dict[str, Any],
) -> int:
    """Give T: as measured for this device, and no more than the caller allows."""
    budget = _budget_here(read_budget(files.budget), model, plan, model_receipt)
    tokens = budget.tokens_per_step
    if options.token_budget is not None and options.token_budget < tokens:
        logger.info("tokens per step: %d, limited from %d", options.token_budget, tokens)
        tokens = options.token_budget
    longest = plan.max_sequence_length + SPECIAL_TOKENS
    if tokens < longest:
        raise InputError(
            f"a step of {tokens} tokens cannot hold a sequence of {longest} tokens",
            path=files.budget,
            hint="lower plan.max_sequence_length, or use a device with more memory",
        )
    if tokens > plan.token_budget:
        tokens -= tokens % plan.token_budget
    return tokens


def _budget_here(
    budget: Budget, model: PackedESM2, plan: Plan, model_receipt: dict[str, Any]
) -> Budget:
    """Use the measured budget where it was measured on such a device, else measure again."""
    here = {
        "weights_sha256": model_receipt["weights_sha256"],
        "device": device_name(model.device),
        "dtype": str(model.dtype).removeprefix("torch."),
        "backend": model.attend.name,
    }
    differing = [
        f"{key} {getattr(budget, key)}" for key in here if getattr(budget, key) != here[key]
    ]
    if not differing:
        return budget
    logger.warning("the token budget was measured for %s: measuring again", ", ".join(differing))
    return measure_budget(
        model,
        model_receipt["weights_sha256"],
        plan_token_budget=plan.token_budget,
        max_seqlen=plan.max_sequence_length + SPECIAL_TOKENS,
    )


def _run(
    dataset: SequenceDataset,
    plan: Plan,
    model: PackedESM2,
    files: ShardFiles,
    tokens: int,
    output: ShardOutput,
    options: EmbedOptions,
) -> None:
    """Run all batches, in steps of one shape."""
    converter = esm.data.Alphabet.from_architecture("ESM-1b").get_batch_converter()
    collator = VarlenCollator(
        converter, max_tokens_per_batch=tokens, max_sequence_length=plan.max_sequence_length
    )
    loader = create_async_dataloader(dataset, collator, num_workers=0, token_budget=tokens)
    batches: Any = loader.batch_sampler
    engine = Engine(
        model,
        StepShape.for_lengths(
            tokens,
            max(map(len, batches), default=1),
            plan.max_sequence_length + SPECIAL_TOKENS,
        ),
        [model.resolve_layer(layer) for layer in options.layers],
        _exact_model(files, model),
    )
    row_of = dict(zip(dataset.ids, plan.row.tolist(), strict=True))
    progress = Progress(int(plan.tokens.sum()))
    for batch, result in engine.stream(loader):
        rows = np.array([row_of[name] for name in batch["sequence_ids"]])
        output.store(result, rows, batch, progress.step(len(batch["input_ids"])))


def _exact_model(files: ShardFiles, model: PackedESM2) -> Callable[[], PackedESM2] | None:
    """Give a function that loads the same weights in float32, or None where they are already."""
    if model.dtype == torch.float32:
        return None

    def load() -> PackedESM2:
        return _load_model(files, model.device, torch.float32)

    return load
