"""ESM-2's letters, and the one way in which residues are brought to them.

Normalising goes in this order, each kind of change counted: white space removed, gaps removed,
trailing stops removed, lower case raised, everything else outside the alphabet replaced by X.
Gaps go before stops so that the row of an alignment (``MKV*---``) ends like the protein (``MKV``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from types import MappingProxyType

__all__ = [
    "CHANGES",
    "KEY_BYTES",
    "KNOWN",
    "RESIDUES",
    "SPECIAL_TOKENS",
    "Normalised",
    "count_unknown",
    "normalise",
    "sequence_key",
    "sequence_keys",
]

RESIDUES = "LAGVSERTIDPKQNFYMHWCXBUZO"
"""The residue letters of ESM-2's vocabulary (fair-esm, ``esm.constants.proteinseq_toks``)."""

SPECIAL_TOKENS = 2
"""Tokens that ESM-2 adds to each sequence: ``<cls>`` (BOS) in front and ``<eos>`` behind."""

CHANGES = ("upper_case", "whitespace", "stop_removed", "gap_removed", "replaced", "numbers")
"""Kinds of change that are counted, in letters; of position numbers, in numbers."""

KNOWN = RESIDUES.translate(dict.fromkeys(map(ord, "XBZ"))).encode()
"""The letters of one amino acid each."""

KEY_BYTES = 16

_NOTHING = blake2b(digest_size=KEY_BYTES)
_LETTERS = RESIDUES.encode()
_LOWER_CASE = b"abcdefghijklmnopqrstuvwxyz"
_WHITESPACE = b" \t\n\r\v\f"
_GAPS = b"-."
_STOP = b"*"
_TO_ALPHABET = bytes(
    code if chr(code) in RESIDUES else ord("X") for code in bytes(range(256)).upper()
)
_IN_ALPHABET = _LETTERS + _LETTERS.lower()
_UNCHANGED: Mapping[str, int] = MappingProxyType(dict.fromkeys(CHANGES, 0))


@dataclass(frozen=True, slots=True)
class Normalised:
    """Residues in ESM-2's alphabet, with what was done to them.

    Attributes:
        residues: upper-case letters of `RESIDUES` only.
        replaced: letters that became X; an X that was there before does not count.
        changes: letters changed, by kind (`CHANGES`).
    """

    residues: bytes
    replaced: int
    changes: Mapping[str, int]

    @property
    def changed(self) -> bool:
        """Whether anything at all was changed."""
        return self.changes is not _UNCHANGED


def count_unknown(residues: bytes) -> int:
    """Count the residues that are not known, or not which of two: X, B and Z."""
    return residues.count(b"X") + residues.count(b"B") + residues.count(b"Z")


def normalise(residues: bytes) -> Normalised:
    """Bring residues to ESM-2's alphabet.

    U, O, B, Z and X are in the alphabet and stay. J, a stop that is not at the end, and every byte
    that is no letter (NUL, digits, each byte of a non-ASCII character) become X.

    Args:
        residues: any bytes.

    Returns:
        The normalised residues and the changes. Normalising them again changes nothing.
    """
    if not residues.translate(None, _LETTERS):
        return Normalised(residues, 0, _UNCHANGED)
    unspaced = residues.translate(None, _WHITESPACE)
    ungapped = unspaced.translate(None, _GAPS)
    kept = ungapped.rstrip(_STOP)
    replaced = len(kept.translate(None, _IN_ALPHABET))
    changes = {
        "upper_case": len(kept) - len(kept.translate(None, _LOWER_CASE)),
        "whitespace": len(residues) - len(unspaced),
        "stop_removed": len(ungapped) - len(kept),
        "gap_removed": len(unspaced) - len(ungapped),
        "replaced": replaced,
        "numbers": 0,
    }
    return Normalised(kept.translate(_TO_ALPHABET), replaced, changes)


def sequence_key(residues: bytes) -> bytes:
    """Name a sequence by its content: BLAKE2b, 128 bits, of its normalised residues.

    Args:
        residues: normalised residues; the same sequence written in lower case has another key.

    Returns:
        `KEY_BYTES` bytes.
    """
    digest = _NOTHING.copy()  # a new one takes longer, for its options are read anew
    digest.update(residues)
    return digest.digest()


def sequence_keys(residues: Iterable[bytes]) -> list[str]:
    """Return the keys of many sequences as hexadecimal digits; see `sequence_key`."""
    keys = []
    for letters in residues:
        digest = _NOTHING.copy()
        digest.update(letters)
        keys.append(digest.digest())
    return b"".join(keys).hex("\n", KEY_BYTES).split()
