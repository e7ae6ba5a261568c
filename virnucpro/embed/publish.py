"""A shard's results on the disk: whether they are there, their space, and their publication.

The arrays are published first and the receipt last. A shard without a receipt does not exist.
"""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager

import numpy as np

from virnucpro.embed.checkpoints import checkpoints_directory
from virnucpro.embed.job import ShardFiles, ShardJob
from virnucpro.embed.output import OutputFiles, ShardOutput
from virnucpro.embed.receipt import (
    Float32Agreement,
    ShardReceipt,
    ShardRequest,
    read_receipt,
    write_receipt,
)
from virnucpro.embed.stored import Taken, give_rows
from virnucpro.errors import VirnucproError
from virnucpro.files import remove, sha256_of, write_bytes
from virnucpro.formats import EXTRA_ARRAYS

__all__ = ["clear", "finished", "reserve", "seal"]

logger = logging.getLogger(__name__)


def finished(files: ShardFiles, request: ShardRequest) -> ShardReceipt | None:
    """Return the receipt of a whole earlier result of the same request, or None."""
    if not (files.receipt.exists() and files.embeddings.exists() and files.step_log.exists()):
        return None
    try:
        receipt = read_receipt(files.receipt)
    except VirnucproError as error:
        logger.warning("%s: computing the shard again", error)
        return None
    if differing := receipt.differing(request):
        logger.info("an earlier result differs in %s: computing again", ", ".join(differing))
        return None
    hashes = {files.embeddings: receipt.array_sha256}
    hashes |= {files.extras[name]: sha256 for name, sha256 in receipt.extras.items()}
    for path, sha256 in hashes.items():
        if not path.exists() or sha256_of(path) != sha256:
            logger.warning("%s does not match its receipt: computing again", path)
            return None
    return receipt


def reserve(job: ShardJob) -> AbstractContextManager[ShardOutput]:
    """Reserve the space of a shard's arrays."""
    extras = {name: job.files.extras[name] for name in job.options.extras}
    targets = OutputFiles(job.files.embeddings, **extras)
    return ShardOutput.reserve(
        targets, job.plan, job.vector_shape, job.options.output_dtype, job.readout.pooling
    )


def seal(
    job: ShardJob, output: ShardOutput, taken: Taken, agreement: Float32Agreement | None = None
) -> ShardReceipt:
    """Publish a shard and then its receipt, unless another job has finished the same meanwhile."""
    hashes = output.finish()
    retries = sum(step.retries for step in output.steps)
    receipt = ShardReceipt(
        **vars(job.request),
        array_sha256=hashes.pop("embeddings"),
        extras=hashes,
        shape=[job.plan.sequences, *job.vector_shape],
        layers=list(job.readout.layers),
        backend=taken.request.backend,
        tokens_per_step=taken.request.tokens_per_step,
        quarantined=output.quarantined(),
        steps=len(output.steps),
        retries=retries,
        recomputed_float32=sum(step.recomputed for step in output.steps),
        agreement=agreement,
        request=None if retries else taken.request,
        known=int(np.count_nonzero(taken.rows)),
        close=taken.close,
    )
    first = finished(job.files, job.request)
    if first is None:
        output.publish()
        write_bytes(job.files.step_log, output.step_log())
        write_receipt(job.files.receipt, receipt)
        give_rows(job, taken, output)
        return receipt
    same = first.array_sha256 == receipt.array_sha256
    logger.log(
        logging.INFO if same else logging.WARNING,
        "another job finished %s first; its result stays, this one %s",
        job.files.embeddings,
        "is the same" if same else "has other bits and is dropped",
    )
    return first


def clear(job: ShardJob) -> None:
    """Remove what a finished shard needs no more, also of an earlier request."""
    remove(checkpoints_directory(job.files.embeddings))
    for name in set(EXTRA_ARRAYS).difference(job.options.extras):
        remove(job.files.extras[name])
