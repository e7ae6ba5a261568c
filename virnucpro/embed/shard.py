"""Embeds one planned shard: plan and sequences in, arrays and their receipt out.

The order of the work: check what is there, reserve the output's space, load the model, take over
what a killed run had computed (`virnucpro.embed.checkpoints`), run the other steps, verify that
every item was computed once, and only then publish the files, the arrays first and the receipt
last. A shard without a receipt does not exist.
"""

from __future__ import annotations

import logging
from concurrent.futures import Future
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from typing import Any

import esm
import numpy as np
import torch

from virnucpro.data.collators import VarlenCollator
from virnucpro.data.dataloader_utils import create_async_dataloader
from virnucpro.embed.agreement import SAMPLE, agreement_with_float32
from virnucpro.embed.batch import PackedBatch
from virnucpro.embed.checkpoints import Checkpoints, checkpoints_directory
from virnucpro.embed.engine import Engine
from virnucpro.embed.exact import ExactModel
from virnucpro.embed.job import EmbedOptions, ShardFiles, ShardJob, prepare_job
from virnucpro.embed.output import ShardOutput
from virnucpro.embed.publish import clear, finished, reserve, seal
from virnucpro.embed.receipt import Float32Agreement, ShardReceipt
from virnucpro.embed.step import StepShape
from virnucpro.embed.step_log import StepRecord
from virnucpro.embed.stored import Taken, stored_request, take_rows
from virnucpro.embed.tokens import choose_tokens_per_step
from virnucpro.files import sha256_in_background
from virnucpro.formats import EMBED_FORMAT
from virnucpro.model.esm2 import PackedESM2
from virnucpro.model.loading import load_model
from virnucpro.plan.plan import pack_missing
from virnucpro.progress import Progress
from virnucpro.sequences.alphabet import SPECIAL_TOKENS
from virnucpro.store.store import Known

__all__ = ["embed_shard"]

logger = logging.getLogger(__name__)


def embed_shard(
    files: ShardFiles,
    options: EmbedOptions,
    weights_sha256: Future[str] | None = None,
    known: Known | None = None,
) -> ShardReceipt:
    """Embed a planned shard, unless its receipt says that just this was done already.

    Args:
        files: where things are.
        options: what to compute and on what.
        weights_sha256: the hash of the weights, where it was begun before (it takes a second for
            each GB or so, and this module's own imports take that long).
        known: what `virnucpro.embed.known.look_up_shard` found.

    Raises:
        InputError: the options ask for a device, dtype or layer that is not there.
        DataError: plan, shard, weights or token budget are damaged or do not belong together, or
            the space for the result is not there.
    """
    job = prepare_job(files, options)
    receipt = finished(files, job.request)
    if receipt is None:
        receipt = _compute(job, weights_sha256 or sha256_in_background(files.weights), known)
    else:
        logger.info("shard %s is finished already: its receipt and its bytes agree", files.shard)
    clear(job)
    return receipt


def _compute(job: ShardJob, weights_sha256: Future[str], known: Known | None) -> ShardReceipt:
    """Compute what stores do not know of a shard, and publish it."""
    files, readout = job.files, job.readout
    with reserve(job) as output:
        load = partial(
            load_model,
            *(files.weights, files.model_receipt),
            head=readout.likelihood,
            sha256=weights_sha256,
        )
        model = load(device=job.device, dtype=job.dtype)
        exact = ExactModel(lambda device: load(device=device, dtype=torch.float32), model.device)
        checkpoints = _open_checkpoints(job, model, output)
        tokens = (checkpoints and checkpoints.tokens_per_step) or choose_tokens_per_step(
            *(files.budget, model, job.plan, job.request.weights_sha256, readout),
            job.options.token_budget,
        )
        request = stored_request(job, backend=model.backend.name, tokens_per_step=tokens)
        taken = take_rows(job, request, output, known)
        collator = _collator(job, tokens)
        _run_steps(job, model, exact, collator, output, checkpoints, taken)
        return seal(job, output, taken, _agreement(job, model, exact, collator))


def _open_checkpoints(job: ShardJob, model: PackedESM2, output: ShardOutput) -> Checkpoints | None:
    """Open the shard's checkpoints; None where residues are kept, which they do not hold.

    A checkpoint is small beside its shard; a copy of all residues would not be.
    """
    if "residues" in job.options.extras:
        return None
    # Sums on a CPU may differ in their last bits with the number of threads.
    threads = torch.get_num_threads() if model.device.type == "cpu" else None
    depends_on = {"format": EMBED_FORMAT, **asdict(job.request)}
    depends_on |= {"backend": model.backend.name, "threads": threads}
    directory = checkpoints_directory(job.files.embeddings)
    return Checkpoints(directory, depends_on, job.vector_shape, output.value_dtype)


def _collator(job: ShardJob, tokens_per_step: int) -> VarlenCollator:
    """Make the collator of the shard's steps; the order of the rows is the plan's."""
    return VarlenCollator(
        esm.data.Alphabet.from_architecture("ESM-1b").get_batch_converter(),
        max_tokens_per_batch=tokens_per_step,
        max_sequence_length=job.plan.max_sequence_length,
        sort_by_length=False,
    )


def _run_steps(
    job: ShardJob,
    model: PackedESM2,
    exact: ExactModel,
    collator: VarlenCollator,
    output: ShardOutput,
    checkpoints: Checkpoints | None,
    taken: Taken,
) -> None:
    """Run all steps that are not in checkpoints, each of one shape, on what was not taken."""
    plan, readout, tokens = job.plan, job.readout, collator.max_tokens_per_batch
    loader = create_async_dataloader(job.items, collator, num_workers=0, token_budget=tokens)
    sampler: Any = loader.batch_sampler
    if taken.rows.any():
        sampler.batches = pack_missing(plan, taken.rows, tokens)
    steps = sampler.batches  # of each the numbers of its items
    longest, largest = plan.max_sequence_length + SPECIAL_TOKENS, max(map(len, steps), default=1)
    engine = Engine(
        model,
        StepShape.for_lengths(tokens, largest, longest),
        readout,
        None if job.dtype == torch.float32 else exact,
    )
    left = checkpoints.restore(output, steps, tokens) if checkpoints else list(range(len(steps)))
    sampler.batches = [steps[number] for number in left]
    total = sum(int(plan.tokens[step].sum()) for step in steps)
    waiting = sum(int(plan.tokens[step].sum()) for step in sampler.batches)
    progress = Progress(total, what=f"shard {job.request.shard}:", done=total - waiting)
    results = engine.stream(map(PackedBatch.from_collated, loader))
    keeping = checkpoints.keep(output, tokens, total) if checkpoints else nullcontext(_keep_nothing)
    with keeping as keep:
        for number, (batch, result) in zip(left, results, strict=True):
            seconds = progress.step(len(batch.tokens))
            keep(*output.store(number, result, steps[number], batch, seconds))


def _keep_nothing(_record: StepRecord, _values: np.ndarray) -> None:
    """Keep no checkpoint of a step."""


def _agreement(
    job: ShardJob, model: PackedESM2, exact: ExactModel, collator: VarlenCollator
) -> Float32Agreement | None:
    """Return how close float8 is to float32 on some items, long and short ones alike.

    None, with a warning, where there is no memory for that, and None for another dtype.
    """
    if job.dtype != torch.float8_e4m3fn or not (count := len(job.items)):
        return None
    rows = sorted({int(i) for i in np.linspace(0, count - 1, SAMPLE)})
    sample = [PackedBatch.from_collated(collator([job.items[row]])) for row in rows]
    found = agreement_with_float32(model, exact, sample, job.readout.layers)
    if found is None:
        logger.warning("how close the embeddings are to float32 is not known: no memory for it")
    else:
        logger.info("agreement with float32: %s", found)
    return found
