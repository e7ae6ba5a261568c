"""The collator: fair-esm's tokens, laid end to end."""

import pickle
from unittest.mock import MagicMock

import esm
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from virnucpro.data import GreedyPacker, VarlenCollator
from virnucpro.sequences.alphabet import RESIDUES

ALPHABET = esm.data.Alphabet.from_architecture("ESM-1b")
CONVERTER = ALPHABET.get_batch_converter()

residues = st.text(alphabet=RESIDUES, min_size=1, max_size=40)


def pickled(value):
    return pickle.loads(pickle.dumps(value))  # noqa: S301 - as the data loader does for a worker


def collate(*sequences, **options):
    collator = VarlenCollator(CONVERTER, **options)
    return collator([{"id": f"s{i}", "sequence": text} for i, text in enumerate(sequences)])


@settings(max_examples=100, deadline=None)
@given(st.lists(residues, min_size=1, max_size=12))
def test_tokens_equal_those_of_fair_esm_without_its_padding(sequences):
    batch = collate(*sequences)
    # Ids s0, s1, ..., s10 sort as text.
    ordered = sorted(enumerate(sequences), key=lambda each: (-len(each[1]), f"s{each[0]}"))
    _, _, padded = CONVERTER([("", text) for _, text in ordered])
    assert torch.equal(batch["input_ids"], padded[padded != ALPHABET.padding_idx])
    borders = batch["cu_seqlens"].tolist()
    assert borders == [0, *torch.cumsum((padded != ALPHABET.padding_idx).sum(1), 0).tolist()]


def test_gap_letters_of_the_alphabet_have_the_tokens_of_fair_esm():
    expected = CONVERTER([("", "M.K-V")])[2][0]
    assert torch.equal(collate("M.K-V")["input_ids"], expected)


def test_all_keys_types_and_shapes():
    batch = collate("MKV", "A", max_tokens_per_batch=2048)
    assert list(batch) == [
        "sequence_ids",
        "input_ids",
        "position_ids",
        "cu_seqlens",
        "max_seqlen",
        "num_sequences",
        "token_budget",
        "truncated",
    ]
    assert batch["sequence_ids"] == ["s0", "s1"]
    assert batch["input_ids"].tolist() == [0, 20, 15, 7, 2, 0, 5, 2]
    assert batch["position_ids"].tolist() == [0, 1, 2, 3, 4, 0, 1, 2]
    assert batch["cu_seqlens"].tolist() == [0, 5, 8]
    assert batch["input_ids"].dtype == torch.int64
    assert batch["position_ids"].dtype == batch["cu_seqlens"].dtype == torch.int32
    assert (batch["max_seqlen"], batch["num_sequences"], batch["token_budget"]) == (5, 2, 2048)
    assert batch["truncated"] == [False, False]


def test_sequences_are_ordered_longest_first_and_ties_by_id():
    items = [("b", "MK"), ("c", "MKVL"), ("a", "MV"), ("d", "M")]
    items = [{"id": name, "sequence": text, "row": text[-1]} for name, text in items]
    for collator in (VarlenCollator(CONVERTER), pickled(VarlenCollator(CONVERTER))):
        batch = collator(items)
        assert batch["sequence_ids"] == ["c", "a", "b", "d"]
        assert batch["cu_seqlens"].tolist() == [0, 6, 10, 14, 17]
        assert [item["id"] for item in items] == ["b", "c", "a", "d"]  # the list stays as it was


def test_without_sorting_sequences_stay_in_the_order_given():
    batch = collate("M", "MKV", "MK", sort_by_length=False)
    assert batch["cu_seqlens"].tolist() == [0, 3, 8, 12]
    packed = VarlenCollator(CONVERTER).pack(
        [{"id": "a", "sequence": "M"}, {"id": "b", "sequence": "MK"}]
    )
    assert packed["sequence_ids"] == ["a", "b"]


def test_what_an_item_carries_travels_with_it():
    items = [
        {"id": "a", "sequence": "M", "row": 7, "span": (0, 1)},
        {"id": "b", "sequence": "MKV", "row": 8},
        {"id": "c", "sequence": "MKV" * 9, "row": 9, "truncated": True},
    ]
    batch = VarlenCollator(CONVERTER)(items)
    assert batch["sequence_ids"] == ["c", "b", "a"]
    assert batch["row"] == [9, 8, 7]
    assert batch["span"] == [None, None, (0, 1)]
    assert batch["truncated"] == [True, False, False]


def test_constructing_touches_only_the_padding_index():
    alphabet = MagicMock(spec=["padding_idx"])
    VarlenCollator(MagicMock(spec=["alphabet"], alphabet=alphabet))
    assert VarlenCollator(MagicMock()).packer is not None


def test_it_is_the_same_when_pickled_before_and_after_its_first_use():
    collator = VarlenCollator(CONVERTER, max_tokens_per_batch=2048)
    items = [{"id": "a", "sequence": "MKV"}, {"id": "b", "sequence": "AW"}]
    fresh = pickled(collator)
    expected = collator(items)
    used = pickled(collator)
    for copy in (fresh, used):
        assert torch.equal(copy(items)["input_ids"], expected["input_ids"])
        assert copy.packer.max_tokens == 2048


def test_nothing_stays_behind_in_the_collator():
    # A published collator keeps what does not fit in a buffer, and loses it in each worker.
    collator = VarlenCollator(CONVERTER)
    calls = [[{"id": f"{call}{i}", "sequence": "MKV" * 9} for i in range(7)] for call in "abc"]
    assert [collator(call)["sequence_ids"] for call in calls] == [
        [item["id"] for item in call] for call in calls
    ]


def test_a_list_over_the_budget_is_refused_with_the_excess():
    assert collate("M" * 8, "M" * 8, max_tokens_per_batch=20, max_sequence_length=10)
    with pytest.raises(ValueError, match=r"have 21 tokens, 1 over the budget of 20"):
        collate("M" * 8, "M" * 9, max_tokens_per_batch=20, max_sequence_length=10)


def test_a_single_item_instead_of_a_list_is_refused():
    # A published data loader hands single items to its collator, which so never packs anything.
    with pytest.raises(TypeError, match="data loader must give it whole batches"):
        VarlenCollator(CONVERTER)({"id": "a", "sequence": "MKV"})


def test_an_empty_list_is_refused():
    with pytest.raises(ValueError, match="empty list"):
        VarlenCollator(CONVERTER)([])


def test_too_long_sequences_are_cut_flagged_and_told(caplog):
    batch = collate("MKVAW", "MK", max_sequence_length=3)
    assert batch["truncated"] == [True, False]
    assert batch["cu_seqlens"].tolist() == [0, 5, 9]
    assert "s0" in caplog.text
    assert "exceeds max_length" in caplog.text


def test_a_flag_of_an_earlier_cut_is_kept():
    items = [{"id": "a", "sequence": "MK", "truncated": True}, {"id": "b", "sequence": "M"}]
    assert VarlenCollator(CONVERTER)(items)["truncated"] == [True, False]


@pytest.mark.parametrize("letter", ["J", "*", "k", " ", "<", "\x00", "é", "蛋"])
def test_a_letter_outside_the_alphabet_is_named_with_its_sequence(letter):
    with pytest.raises(ValueError, match=r"sequence s1 has .* at residue 3,") as error:
        collate("MKV", f"MK{letter}V")
    assert repr(letter) in str(error.value)


def test_without_sorting_there_is_no_packer():
    assert VarlenCollator(CONVERTER, sort_by_length=False).packer is None
    assert isinstance(VarlenCollator(CONVERTER).packer, GreedyPacker)


@pytest.mark.parametrize("sort_by_length", [True, False])
def test_the_budget_is_one_value_with_the_packers(sort_by_length):
    # A published loader sets the budget on the collator, and packs at another.
    collator = VarlenCollator(CONVERTER, max_tokens_per_batch=4096, sort_by_length=sort_by_length)
    collator.max_tokens_per_batch = 1500
    assert collator([{"id": "a", "sequence": "M"}])["token_budget"] == 1500
    if collator.packer:
        assert collator.packer.max_tokens == 1500
        collator.packer.max_tokens = 1600
        assert collator.max_tokens_per_batch == 1600
    with pytest.raises(ValueError, match="1023 tokens cannot hold"):
        collator.max_tokens_per_batch = 1023
    with pytest.raises(ValueError, match="1000 tokens cannot hold"):
        VarlenCollator(CONVERTER, 1000, sort_by_length=sort_by_length)
