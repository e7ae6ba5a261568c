import dataclasses
import logging

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.store.stores import (
    REQUEST,
    SCORED,
    add,
    empty_like,
    fresh,
    make_keys,
    make_request,
    segments_in,
    taken,
    values_of,
)
from virnucpro.store import lookup, segment, store
from virnucpro.store.lookup import find_keys


@pytest.mark.parametrize(
    "request_",
    [REQUEST, SCORED, make_request(output_dtype="float16"), make_request(layers=[0, 2, 6])],
    ids=["plain", "scored", "float16", "layers"],
)
def test_what_was_added_comes_back_to_the_bit(tmp_path, request_):
    assert add(fresh(tmp_path), range(0, 100, 2), request_) == 50
    known = [key.tobytes() for key in make_keys(range(0, 100, 2))]
    filled = taken(fresh(tmp_path), range(100), request_)
    expected = [key.tobytes() in known for key in make_keys(range(100))]
    assert filled.tolist() == expected


def test_a_store_that_is_not_there_knows_nothing_and_is_made_by_the_first_row(tmp_path, caplog):
    directory = tmp_path / "a" / "b"
    assert not taken(fresh(directory), range(5)).any()
    assert not directory.exists()
    assert caplog.text == ""
    add(fresh(directory), range(5))
    assert taken(fresh(directory), range(5)).all()


def test_the_same_rows_give_the_same_names_and_are_stored_once(tmp_path):
    add(fresh(tmp_path / "a"), range(20))
    add(fresh(tmp_path / "b"), range(20))
    again = segments_in(tmp_path / "b")
    assert [path.name for path in segments_in(tmp_path / "a")] == [path.name for path in again]
    content = {path.name: path.read_bytes() for path in again[0].iterdir()}
    assert add(fresh(tmp_path / "b"), range(20)) == 20
    assert segments_in(tmp_path / "b") == again
    assert {path.name: path.read_bytes() for path in again[0].iterdir()} == content
    assert sorted(path.name for path in again[0].parent.iterdir()) == [again[0].name]


def test_the_arrays_are_plain_numpy_files(tmp_path):
    add(fresh(tmp_path), range(20), SCORED)
    (path,) = segments_in(tmp_path)
    keys = make_keys(range(20))
    assert np.array_equal(np.load(path / "keys.npy", allow_pickle=False), keys)
    for name, array in values_of(keys, SCORED).items():
        assert np.array_equal(np.load(path / f"{name}.npy", allow_pickle=False), array)


@pytest.mark.parametrize(
    "changes",
    [
        {field.name: "other"}
        for field in dataclasses.fields(REQUEST)
        if field.compare and field.type in ("str", "list[int]")
    ]
    + [{"layers": [5]}, {"tokens_per_step": 2}, {"threads": None}, {"engine": 0}]
    + [{"window_overlap": 1}, {"max_sequence_length": 5}],
    ids=str,
)
def test_rows_of_another_request_are_never_taken(tmp_path, changes):
    add(fresh(tmp_path), range(10))
    other = dataclasses.replace(REQUEST, **changes)
    assert other.id != REQUEST.id
    assert not fresh(tmp_path).look_up(other, make_keys(range(10))).found.any()


def test_what_the_weights_are_called_is_no_part_of_the_request(tmp_path):
    add(fresh(tmp_path), range(10))
    assert taken(fresh(tmp_path), range(10), make_request(model="other", demo=True)).all()


CLOSE = make_request(device="NVIDIA H100", threads=None, backend="kernels", tokens_per_step=8192)


def test_close_rows_are_taken_where_they_are_accepted_and_flagged(tmp_path):
    add(fresh(tmp_path), range(10))
    add(fresh(tmp_path), range(5, 20), CLOSE)
    add(fresh(tmp_path), range(30), make_request(pooling="max"))
    keys = make_keys(range(30))
    same = fresh(tmp_path).look_up(REQUEST, keys)
    assert (same.found.sum(), same.close.sum()) == (10, 0)
    close = fresh(tmp_path, accept="close").look_up(REQUEST, keys)
    assert (close.found.sum(), close.close.sum()) == (20, 10)
    arrays = empty_like(keys)
    result = fresh(tmp_path, accept="close").fill(close, arrays)
    assert np.array_equal(result.close, close.close)
    assert np.array_equal(result.filled, close.found)
    own = result.filled & ~result.close
    assert np.array_equal(arrays["embeddings"][own], values_of(keys)["embeddings"][own])
    others = values_of(keys, CLOSE)["embeddings"]
    assert np.array_equal(arrays["embeddings"][result.close], others[result.close])


def test_accept_is_same_or_close(tmp_path):
    with pytest.raises(ValueError, match="unknown: 'any'"):
        fresh(tmp_path, accept="any")


def test_rows_that_are_not_finite_are_not_kept(tmp_path):
    keys = make_keys(range(10))
    arrays = values_of(keys, SCORED)
    arrays["embeddings"][3, 1, 2] = np.nan
    arrays["embeddings"][4, 0, 0] = np.inf
    arrays["pseudo_perplexity"][8] = np.nan
    assert fresh(tmp_path).add(SCORED, keys, arrays) == 7
    found = fresh(tmp_path).look_up(SCORED, keys).found
    assert np.flatnonzero(~found).tolist() == [3, 4, 8]


def test_nothing_to_add_leaves_nothing(tmp_path):
    keys = make_keys(range(2))
    arrays = {"embeddings": np.full((2, 1, 8), np.nan, np.float32)}
    assert fresh(tmp_path / "s").add(REQUEST, keys, arrays) == 0
    assert not (tmp_path / "s").exists()


def test_many_rows_become_several_segments(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "SEGMENT_ROWS", 30)
    monkeypatch.setattr(segment, "SEGMENT_ROWS", 30)
    monkeypatch.setattr(store, "_BLOCK_BYTES", 100)
    monkeypatch.setattr(segment, "_RUN_BYTES", 200)
    monkeypatch.setattr(segment, "_GAP_BYTES", 40)
    assert add(fresh(tmp_path), range(100), SCORED) == 100
    assert len(segments_in(tmp_path)) == 4
    assert taken(fresh(tmp_path), range(100), SCORED).all()
    assert taken(fresh(tmp_path), range(0, 200, 3), SCORED).sum() == 34


def test_all_stores_are_read_and_the_first_that_takes_rows_is_written_to(tmp_path):
    one, two, three = tmp_path / "one", tmp_path / "two", tmp_path / "three"
    add(fresh(two), range(10))
    add(fresh(three), range(5, 15))
    one.write_text("no folder")
    both = fresh(one, two, three)
    assert taken(both, range(20)).sum() == 15
    assert add(both, range(15, 20)) == 5
    assert (len(segments_in(two)), len(segments_in(three))) == (2, 1)
    assert taken(both, range(20)).all()


def test_where_no_store_takes_rows_a_warning_says_why(tmp_path, caplog):
    (tmp_path / "one").write_text("no folder")
    assert add(fresh(tmp_path / "one"), range(3)) == 0
    assert "3 rows are kept in no store" in caplog.text
    assert "one" in caplog.text


def test_the_first_of_two_segments_by_name_gives_the_row(tmp_path):
    keys, other = make_keys(range(10)), make_keys(range(11))
    add(fresh(tmp_path), range(10))
    add(fresh(tmp_path), range(11))
    known = fresh(tmp_path).look_up(REQUEST, other)
    names = [each.path.name for each in known.segments]
    assert names == sorted(names)
    first = next(n for n, each in enumerate(known.segments) if each.manifest.rows in (10, 11))
    shared = np.isin(other.view("V16"), keys.view("V16")).reshape(-1)
    assert (known.places.segment[shared] == first).all()


@st.composite
def colliding_keys(draw):
    """Keys of which many have one half in common, and segments of them."""
    half = st.sampled_from([b"\0" * 8, b"\0" * 7 + b"\1", b"\x7f" * 8, b"\xff" * 8])
    pool = draw(st.lists(st.tuples(half, half).map(b"".join), min_size=1, max_size=16, unique=True))
    some = st.lists(st.sampled_from(pool), max_size=16, unique=True).map(sorted)
    return draw(some), draw(st.lists(some, max_size=4)), draw(st.sampled_from([1, 3, 1000]))


def as_array(keys):
    return np.frombuffer(b"".join(keys), np.uint8).reshape(-1, 16)


@given(colliding_keys())
def test_keys_are_found_as_by_looking_for_each_in_each(case):
    wanted, segments, batch = case
    before, lookup._BATCH = lookup._BATCH, batch
    try:
        found = find_keys(
            as_array(wanted), [(n, as_array(keys)) for n, keys in enumerate(segments)]
        )
    finally:
        lookup._BATCH = before
    for number, key in enumerate(wanted):
        first = next((n for n, keys in enumerate(segments) if key in keys), -1)
        assert found.segment[number] == first
        assert found.found[number] == (first >= 0)
        if first >= 0:
            assert segments[first][found.row[number]] == key


def test_known_rows_of_several_segments_come_into_their_places(tmp_path):
    for start in range(0, 60, 10):
        add(fresh(tmp_path), range(start, start + 12))
    assert taken(fresh(tmp_path), [*range(0, 70, 3), 1000]).sum() == 21


def test_the_log_says_where_rows_went(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    add(fresh(tmp_path), range(3))
    assert f"3 rows are kept in the store: {segments_in(tmp_path)[0]}" in caplog.text
