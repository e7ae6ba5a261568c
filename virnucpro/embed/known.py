"""A shard that stores know: taken from them without weights, without a device and its lock."""

from __future__ import annotations

from virnucpro.embed.budget import read_budget
from virnucpro.embed.job import EmbedOptions, ShardFiles, prepare_job
from virnucpro.embed.publish import clear, reserve, seal
from virnucpro.embed.receipt import ShardReceipt
from virnucpro.embed.stored import look_up, stored_request, take_rows, takes_rows
from virnucpro.embed.tokens import limit_tokens
from virnucpro.store.store import Known

__all__ = ["fill_shard", "look_up_shard"]


def look_up_shard(files: ShardFiles, options: EmbedOptions) -> Known | None:
    """Look up what stores know of a shard, without weights and without a device.

    What would be asked for is told by the measured token budget.

    Args:
        files: where things are.
        options: what would be computed.

    Returns:
        None where nothing can be taken, or the budget is of something else.

    Raises:
        InputError: as `embed_shard`.
        DataError: as `embed_shard`.
    """
    if not takes_rows(options):
        return None
    budget = read_budget(files.budget)
    job = prepare_job(files, options, budget)
    told = budget.weights_sha256, budget.readout
    if told != (job.request.weights_sha256, job.readout.facts()):
        return None
    if options.dtype not in ("auto", budget.dtype):
        return None
    tokens = limit_tokens(budget, job.plan, options.token_budget, files.budget)
    return look_up(job, stored_request(job, backend=budget.backend, tokens_per_step=tokens))


def fill_shard(files: ShardFiles, options: EmbedOptions, known: Known) -> ShardReceipt | None:
    """Take all rows of a shard from stores, without weights and without a device.

    Args:
        files: where things are.
        options: what would be computed.
        known: what `look_up_shard` found.

    Returns:
        The receipt, or None where something is left to compute; nothing is written then.

    Raises:
        InputError: as `embed_shard`.
        DataError: as `embed_shard`.
    """
    if not known.found.all():
        return None
    job = prepare_job(files, options, read_budget(files.budget))
    with reserve(job) as output:
        taken = take_rows(job, known.request, output, known)
        if not taken.all:  # some turned out to be damaged, or are gone
            return None
        receipt = seal(job, output, taken)
    clear(job)
    return receipt
