"""A data loader whose batches are packed before a worker sees them.

The batches are made once, from the lengths, in the main process, and handed out as lists of item
numbers. So a batch is full wherever it is collated, every item is in exactly one batch, and the
batches do not depend on the number of workers.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, IterableDataset, Sampler

from virnucpro.data.collators import VarlenCollator
from virnucpro.data.packing import SPECIAL_TOKENS, calculate_token_budget
from virnucpro.plan.first_fit import batch_offsets, first_fit_decreasing

__all__ = ["PackedBatchSampler", "create_async_dataloader", "hide_cuda"]

logger = logging.getLogger(__name__)


class PackedBatchSampler(Sampler[list[int]]):
    """Gives batches of item numbers, the same in each epoch.

    Args:
        batches: for each batch the numbers of its items.
    """

    def __init__(self, batches: Iterable[NDArray[np.int64]]) -> None:
        self.batches = list(batches)

    def __iter__(self) -> Iterator[list[int]]:
        return (batch.tolist() for batch in self.batches)

    def __len__(self) -> int:
        return len(self.batches)


def create_async_dataloader(
    dataset: Any,
    collator: VarlenCollator,
    num_workers: int = 2,
    prefetch_factor: int = 2,
    token_budget: int | None = None,
    device_id: int = 0,
    model_memory_gb: float = 5.0,
) -> DataLoader[Any]:
    """Make a data loader that gives packed batches, each full up to the token budget.

    With a planned data set, as many planned batches as fit the budget run side by side as one
    batch; where the budget is smaller than the plan's, the plan's items are packed again. Else the
    packer packs all items; with `sort_by_length=False` they stay in their order, each batch filled
    until the next item does not fit.

    The token budget is `token_budget` where given, else `calculate_token_budget` where CUDA is
    there, else the collator's. It is set on the collator, which shares it with its packer.

    Args:
        dataset: map-style, with `lengths`, [items] residues, and where it has them `ids` for
            breaking ties; see `virnucpro.data.SequenceDataset`.
        collator: makes a packed batch of a list of items.
        num_workers: worker processes, started by spawn, that see no CUDA; 0 for none.
        prefetch_factor: batches that a worker prepares ahead.
        token_budget: tokens that a batch holds.
        device_id: CUDA device, for the calculated budget.
        model_memory_gb: memory that the model takes, for the calculated budget.

    Returns:
        The data loader. Its batches are fixed here: a budget that is set later does not change
        them.

    Raises:
        TypeError: the data set is not map-style or does not know its lengths.
        ValueError: the budget is below the longest possible item, or the collator would cut the
            items of a plan.
    """
    lengths = _lengths(dataset)
    budget, reason = _token_budget(collator, token_budget, device_id, model_memory_gb)
    collator.max_tokens_per_batch = budget
    batches = _batches(dataset, lengths, collator)
    logger.info(
        "Token budget %d (%s): %d items in %d batches, %d workers",
        budget,
        reason,
        len(lengths),
        len(batches),
        num_workers,
    )
    workers: dict[str, Any] = {}
    if num_workers:
        workers = {
            "multiprocessing_context": "spawn",
            "worker_init_fn": hide_cuda,
            "prefetch_factor": prefetch_factor,
            "persistent_workers": True,
        }
    return DataLoader(
        dataset,
        batch_sampler=PackedBatchSampler(batches),
        collate_fn=collator.pack,  # the batches are in order already
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
        **workers,
    )


def hide_cuda(worker_id: int) -> None:
    """Hide all CUDA devices from a worker, which must never take memory or a context there."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    logger.debug("worker %d sees no CUDA device", worker_id)


def _token_budget(
    collator: VarlenCollator, given: int | None, device_id: int, model_memory_gb: float
) -> tuple[int, str]:
    """Choose the token budget, and say why."""
    if given is not None:
        return given, "as given"
    if torch.cuda.is_available():
        budget = calculate_token_budget(device_id=device_id, model_memory_gb=model_memory_gb)
        return budget, f"calculated for cuda:{device_id}"
    return collator.max_tokens_per_batch, "the collator's, CUDA not available"


def _lengths(dataset: Any) -> NDArray[np.int64]:
    """Return the residues of a data set's items, [items]."""
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        raise TypeError(
            f"{type(dataset).__name__} is not a map-style data set: packing needs to pick items by "
            f"number, and each worker of an iterable one would give all items"
        )
    lengths = np.asarray(getattr(dataset, "lengths", None))
    if lengths.dtype.kind not in "iu" and lengths.size:
        raise TypeError(
            f"{type(dataset).__name__} has no `lengths`, the residues of each item as whole "
            f"numbers: packing needs them before it reads an item"
        )
    if lengths.shape != (len(dataset),):
        raise ValueError(f"the data set has {len(dataset)} items, but lengths of {lengths.shape}")
    return lengths.astype(np.int64)


def _batches(
    dataset: Any, lengths: NDArray[np.int64], collator: VarlenCollator
) -> list[NDArray[np.int64]]:
    """Return for each batch the numbers of its items."""
    if getattr(dataset, "plan", None) is not None:
        return _planned_batches(dataset, lengths, collator)
    if collator.packer is not None:
        ids: Sequence[str] | None = getattr(dataset, "ids", None)
        return collator.packer.pack_lengths(lengths, ids)
    return _in_order(
        np.minimum(lengths, collator.max_sequence_length) + SPECIAL_TOKENS,
        collator.max_tokens_per_batch,
    )


def _planned_batches(
    dataset: Any, lengths: NDArray[np.int64], collator: VarlenCollator
) -> list[NDArray[np.int64]]:
    """Put planned batches side by side; pack the items again where the budget is too small."""
    longest = int(lengths.max(initial=0))
    if longest > collator.max_sequence_length:
        raise ValueError(
            f"the plan has an item of {longest} residues, which the collator would cut at "
            f"{collator.max_sequence_length}: give it the plan's max_sequence_length"
        )
    side_by_side = collator.max_tokens_per_batch // dataset.plan.token_budget
    if not side_by_side:
        logger.info("the plan's budget %d is too large: packed again", dataset.plan.token_budget)
        order, batch = first_fit_decreasing(lengths + SPECIAL_TOKENS, collator.max_tokens_per_batch)
        return np.split(order, batch_offsets(batch)[1:-1]) if order.size else []
    planned = dataset.planned_batches
    return [
        np.concatenate(planned[first : first + side_by_side]).astype(np.int64)
        for first in range(0, len(planned), side_by_side)
    ]


def _in_order(tokens: NDArray[np.int64], budget: int) -> list[NDArray[np.int64]]:
    """Fill batches in the order given, each until the next item does not fit (next fit)."""
    ends = np.cumsum(tokens)
    borders = [0]
    while borders[-1] < len(tokens):
        before = ends[borders[-1] - 1] if borders[-1] else 0
        borders.append(int(np.searchsorted(ends, before + budget, side="right")))
    return np.split(np.arange(len(tokens)), borders[1:-1]) if len(tokens) else []
