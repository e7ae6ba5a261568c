"""Embeds one planned shard: plan and sequences in, arrays and their receipt out.

The order of the work: check what is given, reserve the output's space, load the model, run the
planned batches, verify that every sequence has its row, and only then give the files their names,
the array first and the receipt last. A shard without a receipt does not exist. What a killed run
had computed is taken from its pieces (`virnucpro.embed.pieces`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import esm
import numpy as np
import torch

from virnucpro import __version__
from virnucpro.data.collators import VarlenCollator
from virnucpro.data.dataloader_utils import create_async_dataloader
from virnucpro.data.dataset import SequenceDataset
from virnucpro.embed.closeness import SAMPLE, closeness_to_float32
from virnucpro.embed.engine import Engine
from virnucpro.embed.exact import ExactModel, is_out_of_memory
from virnucpro.embed.output import OutputFiles, ShardOutput, StepRecord
from virnucpro.embed.pieces import Pieces, pieces_directory
from virnucpro.embed.readout import Readout
from virnucpro.embed.request import make_readout
from virnucpro.embed.step import StepShape
from virnucpro.embed.tokens import choose_tokens_per_step
from virnucpro.errors import DataError
from virnucpro.files import (
    atomic_path,
    read_json,
    remove,
    sha256_in_background,
    sha256_of,
    write_bytes,
    write_json,
)
from virnucpro.formats import EMBED_FORMAT, EXTRA_ARRAYS, extra_path
from virnucpro.model.devices import device_name, dtype_name, select_device, select_dtype
from virnucpro.model.esm2 import PackedESM2
from virnucpro.model.loading import load_model
from virnucpro.plan.plan import Plan, read_plan
from virnucpro.progress import Progress
from virnucpro.sequences.alphabet import SPECIAL_TOKENS

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

    @property
    def extras(self) -> dict[str, Path]:
        """The arrays beside the embeddings that options may ask for, by their names in receipts."""
        return {name: extra_path(self.embeddings, name) for name in EXTRA_ARRAYS}


@dataclass(frozen=True)
class EmbedOptions:
    """What to compute and on what.

    Attributes:
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        dtype: ``auto``, ``float32``, ``float16``, ``bfloat16`` or ``float8``.
        layers: representations to keep; negative ones count from the end.
        pooling: one of `virnucpro.embed.readout.POOLINGS`; ``none`` writes the representations of
            all residues beside their mean.
        pseudo_perplexity: one of `virnucpro.embed.request.PSEUDO_PERPLEXITIES`.
        output_dtype: ``float32`` or ``float16``, of the arrays.
        token_budget: no step is larger than this; None for what was measured.
    """

    device: str = "auto"
    dtype: str = "auto"
    layers: tuple[int, ...] = (-1,)
    pooling: str = "mean"
    pseudo_perplexity: str = "none"
    output_dtype: str = "float32"
    token_budget: int | None = None

    @property
    def extras(self) -> list[str]:
        """Names of the arrays that are asked for beside the embeddings."""
        asked = {
            "residues": self.pooling == "none",
            "pseudo_perplexity": self.pseudo_perplexity != "none",
        }
        return [name for name in EXTRA_ARRAYS if asked[name]]


def embed_shard(
    files: ShardFiles, options: EmbedOptions, weights_sha256: Future[str] | None = None
) -> dict[str, Any]:
    """Embed a planned shard, unless its receipt says that just this was done already.

    Args:
        files: where things are.
        options: what to compute and on what.
        weights_sha256: the hash of the weights, where it was begun before (it takes a second for
            each GB or so, and this module's own imports take that long).

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
    readout = make_readout(
        model_receipt,
        files.model_receipt,
        layers=options.layers,
        pooling=options.pooling,
        pseudo_perplexity=options.pseudo_perplexity,
        output_dtype=options.output_dtype,
    )
    device, dtype = _device_and_dtype(options)
    wanted = _identity(files, plan, model_receipt, device, dtype, options)
    if (finished := _finished(files, wanted)) is not None:
        logger.info("shard %s is finished already: its receipt and its bytes agree", files.shard)
        _clear(files, options)
        return finished

    sha256 = weights_sha256 or sha256_in_background(files.weights)
    load = partial(
        load_model,
        *(files.weights, files.model_receipt),
        device=device,
        head=readout.likelihood,
        sha256=sha256,
    )
    shape = (len(options.layers), int(model_receipt["dim"]))
    try:
        receipt, trace = _compute(
            *(files, dataset, plan, shape, load, dtype, options, readout, wanted)
        )
    except _Overtaken as other:
        receipt = other.receipt
    else:
        write_bytes(files.trace, trace)
        write_json(files.receipt, receipt, sealed=True)
    _clear(files, options)
    return receipt


def _clear(files: ShardFiles, options: EmbedOptions) -> None:
    """Remove what a finished shard needs no more, also of an earlier request."""
    remove(pieces_directory(files.embeddings))
    for name, path in files.extras.items():
        if name not in options.extras:
            remove(path)


class _Overtaken(Exception):  # noqa: N818 (no error: it ends the block without its file)
    """Another job has finished the same shard meanwhile: its result stays, this one is dropped."""

    def __init__(self, receipt: dict[str, Any]) -> None:
        super().__init__()
        self.receipt = receipt


def _compute(
    files: ShardFiles,
    dataset: SequenceDataset,
    plan: Plan,
    shape: tuple[int, int],
    load: Callable[..., PackedESM2],
    dtype: torch.dtype,
    options: EmbedOptions,
    readout: Readout,
    wanted: dict[str, Any],
) -> tuple[dict[str, Any], bytes]:
    """Compute the arrays and put them in place; gives what belongs to them, receipt and trace."""
    with ExitStack() as stack:
        temporary = stack.enter_context(atomic_path(files.embeddings))
        extras = {
            name: stack.enter_context(atomic_path(files.extras[name])) for name in options.extras
        }
        output = ShardOutput(
            OutputFiles(temporary, **extras), plan, shape, options.output_dtype, options.pooling
        )
        model = load(dtype=dtype)
        # A piece is small beside its shard; a copy of all residues would not be.
        pieces = (
            None
            if "residues" in extras
            else Pieces(
                pieces_directory(files.embeddings),
                {**wanted, "backend": model.backend.name, "threads": _threads(model.device)},
                shape,
                output.value_dtype,
            )
        )
        tokens = (pieces and pieces.tokens_per_step) or choose_tokens_per_step(
            files.budget, model, plan, wanted["weights_sha256"], readout, options.token_budget
        )
        exact = (
            None if dtype == torch.float32 else ExactModel(partial(_load_exact, load), model.device)
        )
        collator = VarlenCollator(
            esm.data.Alphabet.from_architecture("ESM-1b").get_batch_converter(),
            max_tokens_per_batch=tokens,
            max_sequence_length=plan.max_sequence_length,
            sort_by_length=False,  # the plan's order is the order of the rows
        )
        layers = list(readout.layers)
        engine = partial(
            Engine,
            model,
            layers=layers,
            exact_model=exact,
            pooling=readout.pooling,
            residues=readout.residues,
            likelihood=readout.likelihood,
        )
        _run(files.shard.stem, dataset, plan, engine, collator, output, pieces)
        output.finish()
        receipt = {
            **wanted,
            "array_sha256": sha256_of(temporary),
            "extras": {name: sha256_of(path) for name, path in extras.items()},
            "shape": [plan.sequences, *shape],
            "layers": layers,
            "backend": model.backend.name,
            "tokens_per_step": tokens,
            **output.summary(),
        }
        if exact is not None and dtype == torch.float8_e4m3fn:
            sample = [collator([dataset[row]]) for row in _spread(len(dataset), SAMPLE)]
            receipt["closeness"] = _closeness(model, exact, sample, layers)
        if (first := _finished(files, wanted)) is not None:
            same = first["array_sha256"] == receipt["array_sha256"]
            logger.log(
                logging.INFO if same else logging.WARNING,
                "another job finished %s first; its result stays, this one %s",
                files.embeddings,
                "is the same" if same else "has other bits and is dropped",
            )
            raise _Overtaken(first)
    return receipt, output.trace()


def _device_and_dtype(options: EmbedOptions) -> tuple[torch.device, torch.dtype]:
    """Choose device and dtype, and say why."""
    device, why_device = select_device(options.device)
    dtype, why_dtype = select_dtype(options.dtype, device)
    logger.info("device: %s (%s)", device_name(device), why_device)
    logger.info("dtype: %s (%s)", dtype_name(dtype), why_dtype)
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
        "sequences": plan.sequences,
        "model": model_receipt["name"],
        "weights_sha256": model_receipt["weights_sha256"],
        "demo": model_receipt["demo"],
        "requested_layers": list(options.layers),
        "pooling": options.pooling,
        "pseudo_perplexity": options.pseudo_perplexity,
        "compute_dtype": dtype_name(dtype),
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
    hashes = {files.embeddings: receipt.get("array_sha256")}
    hashes |= {files.extras[name]: sha256 for name, sha256 in receipt["extras"].items()}
    for path, sha256 in hashes.items():
        if not path.exists() or sha256_of(path) != sha256:
            logger.warning("%s does not match its receipt: computing again", path)
            return None
    return receipt


def _load_exact(load: Callable[..., PackedESM2], device: torch.device) -> PackedESM2:
    """Load the model in float32 on a device."""
    return load(dtype=torch.float32, device=device)


def _closeness(
    model: PackedESM2, exact: ExactModel, sample: list[dict[str, Any]], layers: list[int]
) -> dict[str, Any] | None:
    """Return how close the model is to float32; None, with a warning, where that has no memory."""
    try:
        found = closeness_to_float32(model, exact, sample, layers)
    except (torch.cuda.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        found = None
    if found is None:
        logger.warning("how close the embeddings are to float32 is not known: no memory for it")
    else:
        logger.info("cosine to float32: %s", found)
    return found


def _threads(device: torch.device) -> int | None:
    """Give the threads of sums on a CPU, whose last bits may differ with them."""
    return torch.get_num_threads() if device.type == "cpu" else None


def _spread(count: int, sample: int) -> list[int]:
    """Choose some of a plan's items, long and short ones alike."""
    return sorted({int(i) for i in np.linspace(0, count - 1, sample)}) if count else []


def _run(
    shard: str,
    dataset: SequenceDataset,
    plan: Plan,
    make_engine: Callable[..., Engine],
    collator: VarlenCollator,
    output: ShardOutput,
    pieces: Pieces | None,
) -> None:
    """Run all batches that are not in pieces, in steps of one shape."""
    tokens = collator.max_tokens_per_batch
    loader = create_async_dataloader(dataset, collator, num_workers=0, token_budget=tokens)
    sampler: Any = loader.batch_sampler
    batches = sampler.batches
    longest, largest = plan.max_sequence_length + SPECIAL_TOKENS, max(map(len, batches), default=1)
    engine = make_engine(shape=StepShape.for_lengths(tokens, largest, longest))
    left = pieces.restore(output, batches, tokens) if pieces else list(range(len(batches)))
    sampler.batches = [batches[number] for number in left]
    costs = plan.tokens
    total = int(costs.sum())
    waiting = sum(int(costs[batch].sum()) for batch in sampler.batches)
    progress = Progress(total, what=f"shard {shard}:", done=total - waiting)
    with pieces.keep(output, tokens, total) if pieces else nullcontext(_drop) as keep:
        for number, (batch, result) in zip(left, engine.stream(loader), strict=True):
            seconds = progress.step(len(batch["input_ids"]))
            keep(*output.store(number, result, batches[number], batch, seconds))


def _drop(_record: StepRecord, _values: np.ndarray) -> None:
    """Keep no piece of a step."""
