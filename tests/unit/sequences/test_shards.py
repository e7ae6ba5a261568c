import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from virnucpro.errors import DataError
from virnucpro.sequences.alphabet import RESIDUES, sequence_key
from virnucpro.sequences.shards import read_shard, write_shard

SEQUENCES = [b"MKVLLA", b"ACDEFGHIK", b"M", b"XXXX", b"WYWYWYWY"]

distinct = st.lists(st.text(RESIDUES, min_size=1, max_size=50).map(str.encode), unique=True)


@settings(max_examples=60, deadline=None)
@given(sequences=distinct, seed=st.integers(0, 9))
def test_a_shard_depends_on_its_set_of_sequences_alone(tmp_path_factory, sequences, seed):
    folder = tmp_path_factory.mktemp("shards")
    write_shard(folder / "a.fasta", sequences)
    shuffled = sequences * 2
    random.Random(seed).shuffle(shuffled)
    write_shard(folder / "b.fasta", shuffled)
    assert (folder / "a.fasta").read_bytes() == (folder / "b.fasta").read_bytes()
    shard = read_shard(folder / "a.fasta")
    assert len(shard) == len(sequences)
    assert set(shard.residues) == set(sequences)
    assert shard.keys == sorted(sequence_key(residues).hex() for residues in sequences)
    assert shard.keys == [sequence_key(residues).hex() for residues in shard.residues]


def test_a_shard_is_fasta_with_residues_on_one_line(tmp_path):
    write_shard(tmp_path / "s.fasta", [b"MKV" * 100])
    key = sequence_key(b"MKV" * 100).hex()
    assert (tmp_path / "s.fasta").read_bytes() == f">{key}\n{'MKV' * 100}\n".encode()


@pytest.fixture
def shard(tmp_path):
    path = tmp_path / "00000.fasta"
    write_shard(path, SEQUENCES)
    return path


def refusal(path):
    with pytest.raises(DataError) as caught:
        read_shard(path)
    assert caught.value.path == path
    assert "made again" in caught.value.hint
    return caught.value


@pytest.mark.fault(7)
def test_a_flipped_bit_is_found_wherever_it_is(shard):
    content = bytearray(shard.read_bytes())
    for bit in random.Random(3).sample(range(len(content) * 8), 200):
        content[bit // 8] ^= 1 << bit % 8
        shard.write_bytes(content)
        refusal(shard)
        content[bit // 8] ^= 1 << bit % 8


@pytest.mark.fault(8)
def test_a_truncated_shard_is_refused_unless_whole_sequences_are_missing(shard):
    content = shard.read_bytes()
    whole = {0} | {end + 1 for end in range(len(content)) if content[end + 1 : end + 2] == b">"}
    for size in set(range(len(content))) - whole:
        shard.write_bytes(content[:size])
        refusal(shard)


def test_the_damaged_line_is_named(shard):
    lines = shard.read_bytes().split(b"\n")
    lines[3] = b"MKVMKV"
    shard.write_bytes(b"\n".join(lines))
    assert refusal(shard).line == 3
    assert "not the hash" in refusal(shard).message


@pytest.mark.parametrize("order", [[1, 0], [0, 0]], ids=["decreasing", "twice"])
def test_sequences_out_of_order_are_refused(shard, order):
    parts = shard.read_bytes().split(b">")[1:]
    shard.write_bytes(b"".join(b">" + parts[number] for number in order))
    assert refusal(shard).line == 3
    assert "increasing" in refusal(shard).message


def test_a_missing_shard_is_named(tmp_path):
    assert "No such file" in refusal(tmp_path / "00007.fasta").message
