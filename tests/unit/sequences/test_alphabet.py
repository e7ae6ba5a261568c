from hashlib import blake2b

import pytest
from esm.data import Alphabet
from hypothesis import given
from hypothesis import strategies as st

from virnucpro.sequences.alphabet import (
    CHANGES,
    RESIDUES,
    normalise,
    sequence_key,
    sequence_keys,
)

CASES = {
    "nothing to do": (b"LAGVSERTIDPKQNFYMHWCXBUZO", b"LAGVSERTIDPKQNFYMHWCXBUZO", {}),
    "empty": (b"", b"", {}),
    "lower case": (b"MkvL", b"MKVL", {"upper_case": 2}),
    "white space": (b" M K\tV\n\r\v\f", b"MKV", {"whitespace": 7}),
    "trailing stop": (b"MKV*", b"MKV", {"stop_removed": 1}),
    "several trailing stops": (b"MKV***", b"MKV", {"stop_removed": 3}),
    "trailing stop before white space": (b"MKV* \n", b"MKV", {"stop_removed": 1, "whitespace": 2}),
    "trailing stop before gaps": (b"MKV*--", b"MKV", {"stop_removed": 1, "gap_removed": 2}),
    "inner stop": (b"MK*V*", b"MKXV", {"replaced": 1, "stop_removed": 1}),
    "leading stop": (b"*MKV", b"XMKV", {"replaced": 1}),
    "only a stop": (b"*", b"", {"stop_removed": 1}),
    "gaps": (b"M-K.V--", b"MKV", {"gap_removed": 4}),
    "J": (b"MJV", b"MXV", {"replaced": 1}),
    "j": (b"mjv", b"MXV", {"replaced": 1, "upper_case": 3}),
    "rare and ambiguous letters stay": (b"UOBZX", b"UOBZX", {}),
    "NUL": (b"M\0V", b"MXV", {"replaced": 1}),
    "each byte of a non-ASCII letter": ("MÄV".encode(), b"MXXV", {"replaced": 2}),
    "digits and marks": (b"M1?>_V", b"MXXXXV", {"replaced": 4}),
}


@pytest.mark.fault(30)
@pytest.mark.parametrize(("raw", "residues", "changes"), CASES.values(), ids=CASES.keys())
def test_each_row_of_the_normalisation_table(raw, residues, changes):
    result = normalise(raw)
    assert result.residues == residues
    assert dict(result.changes) == dict.fromkeys(CHANGES, 0) | changes
    assert result.replaced == changes.get("replaced", 0)
    assert result.changed == bool(changes)


def test_residues_are_the_letters_of_the_published_alphabet():
    alphabet = Alphabet.from_architecture("ESM-1b")
    assert [token for token in alphabet.standard_toks if token.isalpha()] == list(RESIDUES)


@given(st.binary(max_size=200) | st.text("acdJ*-. \nXM", max_size=50).map(str.encode))
def test_normalised_residues_stay_in_the_alphabet_and_normalise_to_themselves(raw):
    result = normalise(raw)
    assert set(result.residues.decode()) <= set(RESIDUES)
    again = normalise(result.residues)
    assert again.residues == result.residues
    assert not again.changed


@pytest.mark.fault(30)
@given(st.binary(max_size=200))
def test_no_letter_is_lost_without_being_counted(raw):
    result = normalise(raw)
    removed = sum(result.changes[kind] for kind in ("whitespace", "stop_removed", "gap_removed"))
    assert len(raw) == len(result.residues) + removed
    assert result.changed == (raw != result.residues)


def test_key_is_blake2b_of_128_bits():
    assert sequence_key(b"MKV") == blake2b(b"MKV", digest_size=16).digest()
    assert sequence_key(b"").hex() == "cae66941d9efbd404e4d88758ea67670"


def test_keys_of_many_are_the_keys_of_each():
    many = [b"MKV", b"", b"M" * 5000, b"MKV"]
    assert sequence_keys(many) == [sequence_key(residues).hex() for residues in many]
    assert sequence_keys([]) == []
