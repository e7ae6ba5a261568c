"""Items: the parts of sequences that are computed, and the parameters that decide them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from virnucpro.errors import InputError
from virnucpro.plan.first_fit import SPECIAL_TOKENS
from virnucpro.sequences.alphabet import KEY_BYTES

__all__ = [
    "LONG_SEQUENCES",
    "Items",
    "check_parameters",
    "cut_items",
    "key_array",
    "rising",
]

#: What can be done with sequences over the maximum length: keep the N-terminal part, or cut the
#: whole into windows that do not overlap.
LONG_SEQUENCES = ("truncate", "window")


class Items(NamedTuple):
    """Items of a shard, in the order of their rows and starts; all arrays are [items].

    Attributes:
        row: number of the item's sequence in the shard.
        start: its first residue, from 0.
        end: one past its last residue.
        truncated: whether the sequence was cut and the rest is not computed.
    """

    row: NDArray[np.int64]
    start: NDArray[np.int64]
    end: NDArray[np.int64]
    truncated: NDArray[np.bool_]


def cut_items(lengths: NDArray[np.int64], max_sequence_length: int, long_sequences: str) -> Items:
    """Make the items of sequences.

    Windows are the fewest that are short enough, and those of a sequence differ by one residue at
    most, so that none is a short rest.

    Args:
        lengths: [sequences] residues, at least 1 each.
        max_sequence_length: residues that an item has at most.
        long_sequences: one of `LONG_SEQUENCES`.
    """
    if long_sequences == "truncate":
        row = np.arange(len(lengths))
        end = np.minimum(lengths, max_sequence_length)
        return Items(row, np.zeros_like(row), end, lengths > max_sequence_length)
    windows = -(-lengths // max_sequence_length)
    row = np.repeat(np.arange(len(lengths)), windows)
    number = np.arange(row.size) - np.repeat(np.cumsum(windows) - windows, windows)
    start = number * lengths[row] // windows[row]
    end = (number + 1) * lengths[row] // windows[row]
    return Items(row, start, end, np.zeros(row.size, np.bool_))


def check_parameters(token_budget: int, max_sequence_length: int, long_sequences: str) -> None:
    """Refuse parameters that cannot make a plan.

    Raises:
        InputError: says which, and what would do.
    """
    if long_sequences not in LONG_SEQUENCES:
        raise InputError(
            f"long sequences are {long_sequences!r}, expected {' or '.join(LONG_SEQUENCES)}"
        )
    if max_sequence_length < 1:
        raise InputError(f"the maximum sequence length is {max_sequence_length}, not at least 1")
    if token_budget < max_sequence_length + SPECIAL_TOKENS:
        raise InputError(
            f"a token budget of {token_budget} cannot hold a sequence of the maximum length "
            f"{max_sequence_length}, which costs {max_sequence_length + SPECIAL_TOKENS} tokens",
            hint="raise the token budget, or lower the maximum sequence length",
        )


def key_array(keys: Sequence[str] | NDArray[Any]) -> NDArray[np.uint8]:
    """Turn hexadecimal keys into bytes, uint8 [sequences, 16]; such an array passes unchanged.

    Raises:
        ValueError: a key is not 32 hexadecimal digits.
    """
    if isinstance(keys, np.ndarray):
        if keys.dtype != np.uint8 or keys.ndim != 2 or keys.shape[1] != KEY_BYTES:
            raise ValueError(f"keys are {keys.dtype} {keys.shape}, expected uint8 [, {KEY_BYTES}]")
        return keys
    joined = bytes.fromhex("".join(keys))
    if set(map(len, keys)) - {2 * KEY_BYTES}:
        raise ValueError(f"a key is not {2 * KEY_BYTES} hexadecimal digits")
    return np.frombuffer(joined, np.uint8).reshape(-1, KEY_BYTES)


def rising(keys: NDArray[np.uint8]) -> bool:
    """Tell whether keys, [sequences, 16], are sorted as bytes and distinct."""
    # A key as two big-endian halves sorts as its bytes do.
    high, low = np.ascontiguousarray(keys).view(">u8").T
    above = (high[1:] > high[:-1]) | ((high[1:] == high[:-1]) & (low[1:] > low[:-1]))
    return bool(above.all())
