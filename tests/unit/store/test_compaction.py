import numpy as np
import pytest

from tests.unit.store.stores import (
    REQUEST,
    SCORED,
    add,
    fresh,
    make_keys,
    make_request,
    segments_in,
    taken,
)
from virnucpro.store import compaction, segment
from virnucpro.store.compaction import Compaction, compact
from virnucpro.store.maintenance import verify
from virnucpro.store.segment import open_segment


@pytest.fixture
def small(monkeypatch):
    """Segments of 100 rows at most, which are copied some rows at a time."""
    monkeypatch.setattr(segment, "SEGMENT_ROWS", 100)
    monkeypatch.setattr(compaction, "SEGMENT_ROWS", 100)
    monkeypatch.setattr(compaction, "_BLOCK_BYTES", 1000)


def test_small_segments_become_one_and_duplicates_go(tmp_path):
    for start in range(0, 50, 10):
        add(fresh(tmp_path), range(start, start + 15), SCORED)
    assert compact(tmp_path) == Compaction(merged=5, written=1, rows=55, duplicates=20)
    assert len(segments_in(tmp_path)) == 1
    assert taken(fresh(tmp_path), range(55), SCORED).all()
    assert verify(tmp_path) == (1, [])


def test_compaction_comes_to_the_same_bytes_whatever_the_segments_were(tmp_path):
    for number in range(0, 40, 8):
        add(fresh(tmp_path / "a"), range(number, number + 8))
    for number in range(4):
        add(fresh(tmp_path / "b"), range(number, 40, 4))
    contents = []
    for store in (tmp_path / "a", tmp_path / "b"):
        compact(store)
        (path,) = segments_in(store)
        contents.append((path.name, {each.name: each.read_bytes() for each in path.iterdir()}))
    assert contents[0] == contents[1]


def test_requests_are_never_merged_with_each_other(tmp_path):
    others = [REQUEST, SCORED, make_request(tokens_per_step=8192)]
    for request in others:
        add(fresh(tmp_path), range(10), request)
        add(fresh(tmp_path), range(5, 20), request)
    assert compact(tmp_path).written == 3
    for request in others:
        assert taken(fresh(tmp_path), range(20), request).all()


def test_many_rows_become_segments_that_lie_side_by_side(tmp_path, small):
    for start in range(0, 260, 20):
        add(fresh(tmp_path), range(start, start + 20), SCORED)
    assert compact(tmp_path) == Compaction(merged=13, written=3, rows=260, duplicates=0)
    parts = [open_segment(path).keys() for path in segments_in(tmp_path)]
    assert sorted(map(len, parts)) == [86, 87, 87]
    parts.sort(key=lambda keys: keys[0].tobytes())
    assert np.array_equal(np.concatenate(parts), make_keys(range(260)))
    assert taken(fresh(tmp_path), range(260), SCORED).all()


def test_large_segments_stay_as_they_are(tmp_path, small):
    add(fresh(tmp_path), range(60))
    (large,) = segments_in(tmp_path)
    before = (large / "manifest.json").stat()
    add(fresh(tmp_path), range(60, 70))
    add(fresh(tmp_path), range(70, 80))
    assert compact(tmp_path).merged == 2
    assert (large / "manifest.json").stat() == before
    assert len(segments_in(tmp_path)) == 2
    assert compact(tmp_path) == Compaction(0, 0, 0, 0)


def test_not_too_many_rows_are_merged_at_once(tmp_path, small, monkeypatch):
    monkeypatch.setattr(compaction, "_MERGED_ROWS", 50)
    for start in range(0, 100, 20):
        add(fresh(tmp_path), range(start, start + 20))
    assert compact(tmp_path) == Compaction(merged=4, written=2, rows=80, duplicates=0)
    assert taken(fresh(tmp_path), range(100)).all()


def test_what_is_damaged_is_named_and_left_as_it_is(tmp_path, caplog):
    for start in range(0, 30, 10):
        add(fresh(tmp_path), range(start, start + 10))
    damaged = segments_in(tmp_path)[1]
    (damaged / "embeddings.npy").write_bytes(b"\0" * (damaged / "embeddings.npy").stat().st_size)
    assert compact(tmp_path).merged == 2
    assert f"{damaged} is left as it is" in caplog.text
    assert damaged in segments_in(tmp_path)
    assert taken(fresh(tmp_path), range(30)).sum() == 20


def test_nothing_to_merge_is_nothing_done(tmp_path):
    assert compact(tmp_path / "none") == Compaction(0, 0, 0, 0)
    add(fresh(tmp_path), range(10))
    before = segments_in(tmp_path)
    assert compact(tmp_path) == Compaction(0, 0, 0, 0)
    assert segments_in(tmp_path) == before
