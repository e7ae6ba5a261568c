"""What stores know of a shard, taken in place of computing it, and what the shard gives to them.

A row of a store stands in for computing it, to the bit, where its request is the shard's: weights,
what is read out, the windows' rule, T, the kind of device and the versions.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from virnucpro.embed.job import EmbedOptions, ShardJob
from virnucpro.embed.output import ShardOutput
from virnucpro.store.processor import processor_kind
from virnucpro.store.request import Request
from virnucpro.store.store import Known, Store

__all__ = ["Taken", "give_rows", "look_up", "stored_request", "take_rows", "takes_rows"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Taken:
    """What a shard has from stores."""

    request: Request  # of the rows that the shard computes itself
    rows: NDArray[np.bool_]  # [sequences] which were taken
    close: list[int] | None  # of these, those of a close request; None where none is accepted

    @property
    def all(self) -> bool:
        """Whether nothing is left to compute."""
        return bool(self.rows.all())


def stored_request(job: ShardJob, *, backend: str, tokens_per_step: int) -> Request:
    """Return what the rows of a shard are stored by.

    Args:
        job: the shard's work.
        backend: of the attention.
        tokens_per_step: T.
    """
    on_cpu = job.request.device == "cpu"
    kind = processor_kind(torch.backends.cpu.get_cpu_capability()) if on_cpu else None
    parameters = job.plan.parameters
    return Request(
        weights_sha256=job.request.weights_sha256,
        layers=list(job.readout.layers),
        pooling=job.request.pooling,
        pseudo_perplexity=job.request.pseudo_perplexity,
        compute_dtype=job.request.compute_dtype,
        output_dtype=job.request.dtype,
        max_sequence_length=parameters.max_sequence_length,
        long_sequences=parameters.long_sequences,
        window_overlap=parameters.window_overlap,
        tokens_per_step=tokens_per_step,
        device=kind or job.request.device,
        threads=torch.get_num_threads() if on_cpu else None,
        backend=backend,
        torch=torch.__version__,
        model=job.request.model,
        demo=job.request.demo,
    )


def takes_rows(options: EmbedOptions) -> bool:
    """Whether rows may be taken: where residues are kept, all is computed, for a store has none."""
    return bool(options.store) and "residues" not in options.extras


def look_up(job: ShardJob, request: Request) -> Known:
    """Look up what the stores know of a shard."""
    known = _store(job).look_up(request, job.plan.sequence_keys)
    count = int(np.count_nonzero(known.found))
    logger.info("stores know %d of %d sequences", count, job.plan.sequences)
    return known


def take_rows(job: ShardJob, request: Request, output: ShardOutput, known: Known | None) -> Taken:
    """Fill an output with what the stores know.

    Args:
        job: the shard's work.
        request: what the rows are to be computed with.
        output: of the shard.
        known: what was looked up before; looked up anew where that was another request.
    """
    accepts_close = bool(job.options.store) and job.options.store_accept == "close"
    if not takes_rows(job.options):
        nothing = np.zeros(job.plan.sequences, np.bool_)
        return Taken(request, nothing, [] if accepts_close else None)
    if known is None or known.request != request:
        known = look_up(job, request)
    filled = _store(job).fill(known, output.vectors)
    output.mark_known(filled.filled)
    close = np.flatnonzero(filled.close).tolist() if accepts_close else None
    return Taken(request, filled.filled, close)


def give_rows(job: ShardJob, taken: Taken, output: ShardOutput) -> None:
    """Add to the stores what a shard computed; a store that takes nothing costs a warning.

    Rows of a step that was split for memory are not of the request: they stay out.
    """
    if not job.options.store or taken.all:
        return
    if any(step.retries for step in output.steps):
        logger.warning("a step was split for memory: this shard's rows are kept in no store")
        return
    computed = ~taken.rows if taken.rows.any() else slice(None)
    vectors = {name: array[computed] for name, array in output.vectors.items()}
    _store(job).add(taken.request, job.plan.sequence_keys[computed], vectors)


def _store(job: ShardJob) -> Store:
    return Store(job.options.store, job.options.store_accept)
