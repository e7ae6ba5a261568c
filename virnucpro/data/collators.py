"""From a list of sequences to one packed batch for varlen attention, without padding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from virnucpro.data.packing import SPECIAL_TOKENS, GreedyPacker, SequenceDict

__all__ = ["VarlenCollator"]

_UNKNOWN = 255
_OWN = frozenset({"id", "sequence", "truncated"})  # of an item: they have names in a batch


class VarlenCollator:
    """Lays sequences end to end as ``<cls> residues <eos>`` each, with the borders beside them.

    It holds no buffer: what goes into a call comes out of it, so it works the same in the main
    process, in a worker and pickled. Called with a list, it first orders it by
    `packer.sort_by_length`; the data loader, whose batches are in order already, calls `pack`.

    Args:
        batch_converter: fair-esm's batch converter; only its `alphabet` is used, and of that
            nothing but `padding_idx` before the first call.
        max_tokens_per_batch: the token budget, one value with the packer's.
        max_sequence_length: residues of a sequence that are kept.
        sort_by_length: whether sequences are ordered, longest first and ties by id; False makes
            `packer` None, and the order given stays.

    Raises:
        ValueError: the budget is below `max_sequence_length` + 2.
    """

    def __init__(
        self,
        batch_converter: Any,
        max_tokens_per_batch: int = 4096,
        max_sequence_length: int = 1022,
        sort_by_length: bool = True,
    ) -> None:
        self.batch_converter = batch_converter
        self.padding_idx = batch_converter.alphabet.padding_idx
        self.sort_by_length = sort_by_length
        # Kept without sorting too: it is where the budget and the maximum length live.
        self._packer = GreedyPacker(max_tokens_per_batch, max_sequence_length)
        self._table: bytes | None = None

    @property
    def packer(self) -> GreedyPacker | None:
        """What orders the sequences; None with `sort_by_length=False`."""
        return self._packer if self.sort_by_length else None

    @property
    def max_tokens_per_batch(self) -> int:
        """Tokens that a batch holds; setting it sets the packer's, for it is the same value."""
        return self._packer.max_tokens

    @max_tokens_per_batch.setter
    def max_tokens_per_batch(self, value: int) -> None:
        self._packer.max_tokens = value

    @property
    def max_sequence_length(self) -> int:
        """Residues of a sequence that are kept."""
        return self._packer.max_sequence_length

    def __call__(self, batch: Sequence[SequenceDict]) -> dict[str, Any]:
        """Order sequences, longest first and ties by id, and collate them into one packed batch.

        With `sort_by_length=False` the order given stays.

        Args:
            batch: see `pack`.

        Returns:
            See `pack`.

        Raises:
            TypeError: see `pack`.
            ValueError: see `pack`.
        """
        _check_list(batch)
        return self.pack(self.packer.sort_by_length(batch) if self.packer else batch)

    def pack(self, batch: Sequence[SequenceDict]) -> dict[str, Any]:
        """Collate sequences, in the order given, into one packed batch of T tokens, B sequences.

        Args:
            batch: [B] dicts with 'id' and 'sequence', not empty, within the token budget.

        Returns:
            `sequence_ids` list of B; `input_ids` [T] int64; `position_ids` [T] int32, from 0 in
            each sequence; `cu_seqlens` [B + 1] int32, where sequences start, and T; `max_seqlen`,
            the longest in tokens; `num_sequences` B; `token_budget`; `truncated` list of B bools.
            What else the items carry, such as a row number, under its own name as a list of B.

        Raises:
            TypeError: `batch` is not a list of dicts.
            ValueError: no sequence, more tokens than the budget, or a letter that the alphabet
                does not have.
        """
        _check_list(batch)
        items = [self._packer.truncate(item) for item in batch]
        residues = [item["sequence"] for item in items]
        lengths = np.fromiter(map(len, residues), np.int64, len(items)) + SPECIAL_TOKENS
        total = int(lengths.sum())
        if total > self.max_tokens_per_batch:
            raise ValueError(
                f"{len(items)} sequences have {total} tokens, "
                f"{total - self.max_tokens_per_batch} over the budget of "
                f"{self.max_tokens_per_batch}: pack them first"
            )
        cu_seqlens = np.concatenate([[0], np.cumsum(lengths)])
        positions = np.arange(total) - np.repeat(cu_seqlens[:-1], lengths)
        return {
            **_carried(items),
            "sequence_ids": [item["id"] for item in items],
            "input_ids": torch.from_numpy(self._tokens(items, cu_seqlens)),
            "position_ids": torch.from_numpy(positions.astype(np.int32)),
            "cu_seqlens": torch.from_numpy(cu_seqlens.astype(np.int32)),
            "max_seqlen": int(lengths.max()),
            "num_sequences": len(items),
            "token_budget": self.max_tokens_per_batch,
            "truncated": [bool(item.get("truncated", False)) for item in items],
        }

    def _tokens(
        self, items: list[SequenceDict], cu_seqlens: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Return the tokens of the sequences laid end to end, [T]."""
        # One byte a letter, whatever the letter: those outside ASCII become '?', an unknown one.
        letters = "".join(item["sequence"] for item in items).encode("ascii", "replace")
        codes = np.frombuffer(letters.translate(self._letters()), np.uint8)
        if _UNKNOWN in codes:
            raise ValueError(_unknown_letter(items, int(np.argmax(codes == _UNKNOWN))))
        alphabet = self.batch_converter.alphabet
        tokens = np.empty(int(cu_seqlens[-1]), np.int64)
        inside = np.ones(tokens.size, np.bool_)
        first, last = cu_seqlens[:-1], cu_seqlens[1:] - 1
        tokens[first], tokens[last] = alphabet.cls_idx, alphabet.eos_idx
        inside[first] = inside[last] = False
        tokens[inside] = codes
        return tokens

    def _letters(self) -> bytes:
        """Return the table from a letter's byte to its token, made on first use."""
        if self._table is None:
            table = bytearray([_UNKNOWN]) * 256
            for token, index in self.batch_converter.alphabet.tok_to_idx.items():
                if len(token) == 1:
                    table[ord(token)] = index
            self._table = bytes(table)
        return self._table


def _carried(items: Sequence[SequenceDict]) -> dict[str, list[Any]]:
    """Return what items carry beside what a batch is made of, [B] each; None where one has not."""
    names = dict.fromkeys(name for item in items for name in item)
    return {name: [item.get(name) for item in items] for name in names if name not in _OWN}


def _check_list(batch: object) -> None:
    if isinstance(batch, Mapping | str | bytes) or not isinstance(batch, Sequence):
        raise TypeError(
            f"the collator got a {type(batch).__name__} instead of a list of sequence dicts: the "
            f"data loader must give it whole batches (see create_async_dataloader)"
        )
    if not batch:
        raise ValueError("the collator got an empty list: there is no sequence to collate")


def _unknown_letter(items: list[SequenceDict], position: int) -> str:
    """Name the sequence and the letter at a position of the sequences laid end to end."""
    for item in items:
        if position < len(item["sequence"]):
            break
        position -= len(item["sequence"])
    return (
        f"sequence {item['id']} has {item['sequence'][position]!r} at residue {position + 1}, "
        f"which is not in the model's alphabet: normalise sequences first "
        f"(virnucpro.sequences.alphabet.normalise)"
    )
