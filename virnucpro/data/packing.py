"""Packing sequences into batches of a fixed number of tokens, and how many tokens fit a device."""

from __future__ import annotations

import logging
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from virnucpro.plan.first_fit import (
    batch_offsets,
    first_fit_decreasing,
    longest_first,
)
from virnucpro.sequences.alphabet import SPECIAL_TOKENS

__all__ = [
    "SPECIAL_TOKENS",
    "GreedyPacker",
    "SequenceDict",
    "calculate_token_budget",
    "first_fit_decreasing",
]

logger = logging.getLogger(__name__)

#: ``{'id': str, 'sequence': str}``, with ``'truncated': True`` where a sequence was cut.
SequenceDict = dict[str, Any]

_FALLBACK_BUDGET = 4096
_MIN_AVAILABLE_GB = 0.5


class GreedyPacker:
    """Packs sequences into batches of at most `max_tokens` tokens by First-Fit Decreasing.

    Sequences are taken longest first, ties by id, each into the first batch that it fits. A
    sequence of n residues costs n + 2 tokens. Nothing is dropped: what is longer than
    `max_sequence_length` is cut at the C-terminal end and flagged.

    Args:
        max_tokens_per_batch: tokens that a batch holds.
        max_sequence_length: residues of a sequence that are kept.

    Raises:
        ValueError: the budget is below the longest possible item, `max_sequence_length` + 2.
    """

    def __init__(self, max_tokens_per_batch: int, max_sequence_length: int = 1022) -> None:
        self.max_sequence_length = operator.index(max_sequence_length)
        if self.max_sequence_length < 1:
            raise ValueError(f"max_sequence_length is {max_sequence_length}, expected at least 1")
        self.max_tokens = max_tokens_per_batch

    @property
    def max_tokens(self) -> int:
        """Tokens that a batch holds; `max_tokens_per_batch` is the same value."""
        return self._max_tokens

    @max_tokens.setter
    def max_tokens(self, value: int) -> None:
        value = operator.index(value)
        longest = self.max_sequence_length + SPECIAL_TOKENS
        if value < longest:
            raise ValueError(
                f"a budget of {value} tokens cannot hold a sequence of max_sequence_length "
                f"{self.max_sequence_length}, which costs {longest} tokens; raise the budget or "
                f"lower max_sequence_length"
            )
        self._max_tokens = value

    @property
    def max_tokens_per_batch(self) -> int:
        """Tokens that a batch holds; `max_tokens` is the same value."""
        return self._max_tokens

    @max_tokens_per_batch.setter
    def max_tokens_per_batch(self, value: int) -> None:
        self.max_tokens = value

    def pack_sequences(self, sequences: Sequence[SequenceDict]) -> list[list[SequenceDict]]:
        """Pack sequences into batches.

        Args:
            sequences: dicts with 'id' and 'sequence'; neither the list nor a dict is changed.

        Returns:
            The batches, each longest first. A sequence that fits is the same dict that was given;
            one that is longer than `max_sequence_length` is a copy, cut, with 'truncated': True.
        """
        items = list(sequences)
        lengths = np.array([len(item["sequence"]) for item in items], np.int64)
        for index in np.flatnonzero(lengths > self.max_sequence_length).tolist():
            items[index] = self.truncate(items[index])
        batches = self.pack_lengths(lengths, [item["id"] for item in items])
        return [[items[index] for index in batch.tolist()] for batch in batches]

    def pack_lengths(
        self, lengths: NDArray[np.integer[Any]], ids: Sequence[str] | None = None
    ) -> list[NDArray[np.int64]]:
        """Pack sequences of which only the lengths are known.

        Args:
            lengths: [sequences] residues; what is over `max_sequence_length` counts as cut.
            ids: [sequences] ids for breaking ties; without, ties keep the order given.

        Returns:
            For each batch the numbers of its sequences.
        """
        by_id = _order_of_ids(ids) if ids is not None else np.arange(len(lengths))
        tokens = np.minimum(lengths[by_id], self.max_sequence_length) + SPECIAL_TOKENS
        order, batch = first_fit_decreasing(tokens, self.max_tokens)
        if not order.size:
            return []
        return np.split(by_id[order], batch_offsets(batch)[1:-1])

    def truncate(self, sequence: SequenceDict) -> SequenceDict:
        """Cut a sequence that is too long, with a warning: a copy; any other is given back as is.

        The N-terminal `max_sequence_length` residues are kept.
        """
        residues = sequence["sequence"]
        if len(residues) <= self.max_sequence_length:
            return sequence
        logger.warning(
            "Sequence %s of %d residues exceeds max_length %d: truncated, the C-terminal end is "
            "lost",
            sequence["id"],
            len(residues),
            self.max_sequence_length,
        )
        return {**sequence, "sequence": residues[: self.max_sequence_length], "truncated": True}

    def sort_by_length(self, sequences: Sequence[SequenceDict]) -> list[SequenceDict]:
        """Return a sorted copy of the list: longest first, ties by id, then in the order given."""
        by_id = sorted(sequences, key=operator.itemgetter("id"))
        lengths = np.array([len(item["sequence"]) for item in by_id], np.int64)
        return [by_id[index] for index in longest_first(lengths).tolist()]

    def compute_efficiency(self, batches: Sequence[Sequence[SequenceDict]]) -> float:
        """Return the share of the batches' tokens that are real, from 0 to 1; 0.0 for no batch.

        Raises:
            ValueError: a batch holds more than the budget.
        """
        if not batches:
            return 0.0
        used = [sum(self._tokenized_length(item["sequence"]) for item in b) for b in batches]
        if max(used) > self.max_tokens:
            raise ValueError(
                f"batch {used.index(max(used))} has {max(used)} tokens, more than the budget of "
                f"{self.max_tokens}"
            )
        return sum(used) / (len(batches) * self.max_tokens)

    def _tokenized_length(self, sequence: str) -> int:
        return len(sequence) + SPECIAL_TOKENS


def _order_of_ids(ids: Sequence[str]) -> NDArray[np.int64]:
    """Return the numbers of the ids in sorted order; equal ids keep their order."""
    return np.array(sorted(range(len(ids)), key=ids.__getitem__), dtype=np.int64)


def calculate_token_budget(
    device_id: int = 0,
    model_memory_gb: float = 5.0,
    safety_margin_gb: float = 2.0,
    bytes_per_token: int = 4096,
    min_tokens: int = 1024,
    max_tokens: int = 16384,
) -> int:
    """Estimate from a GPU's total memory how many tokens fit in one step.

    Total memory less the model and the margin (at least 0.5 GB), over the bytes per token, clamped
    to `min_tokens` ... `max_tokens`. GB is 2**30 bytes. With the default bytes per token the result
    is `max_tokens` on every GPU, since 0.5 GB over 4 KB is 131,072 already: where it matters, give
    a measured figure.

    Args:
        device_id: number of the CUDA device.
        model_memory_gb: memory that the model's weights take.
        safety_margin_gb: memory that is left free.
        bytes_per_token: memory that one token of a step takes at its peak.
        min_tokens: lower limit of the result.
        max_tokens: upper limit of the result.

    Returns:
        Tokens per step; 4,096, with a warning, where CUDA is not available.

    Raises:
        ValueError: `bytes_per_token` is not positive, or the limits are crossed.
    """
    if bytes_per_token <= 0:
        raise ValueError(f"bytes_per_token is {bytes_per_token}, expected a positive number")
    if min_tokens > max_tokens:
        raise ValueError(f"min_tokens {min_tokens} is more than max_tokens {max_tokens}")
    if not torch.cuda.is_available():
        logger.warning("CUDA not available: using a token budget of %d", _FALLBACK_BUDGET)
        return _FALLBACK_BUDGET
    total_gb = torch.cuda.get_device_properties(device_id).total_memory / 1024**3
    available_gb = max(total_gb - model_memory_gb - safety_margin_gb, _MIN_AVAILABLE_GB)
    budget = min(max(int(available_gb * 1024**3 / bytes_per_token), min_tokens), max_tokens)
    logger.info(
        "Token budget %d on cuda:%d: %.1fGB total, %.1fGB model, %.1fGB margin, "
        "%.1fGB for tokens of %d bytes, limits %d to %d",
        budget,
        device_id,
        total_gb,
        model_memory_gb,
        safety_margin_gb,
        available_gb,
        bytes_per_token,
        min_tokens,
        max_tokens,
    )
    return budget
