import dataclasses

import pytest

from tests.unit.store.stores import (
    REQUEST,
    SCORED,
    add,
    fresh,
    make_request,
    segments_in,
    taken,
)
from virnucpro.errors import DataError, InputError
from virnucpro.store.maintenance import (
    Problem,
    drop,
    find_request,
    read_request,
    status,
    verify,
)


@pytest.fixture
def directory(tmp_path):
    """Two segments of one request, one of another."""
    add(fresh(tmp_path), range(10))
    add(fresh(tmp_path), range(5, 20))
    add(fresh(tmp_path), range(7), SCORED)
    return tmp_path


def test_status_counts_segments_rows_and_bytes_by_request(directory):
    found, problems = status(directory)
    assert problems == []
    assert [one.request.id for one in found] == sorted([REQUEST.id, SCORED.id])
    by_request = {one.request.id: one for one in found}
    assert (by_request[REQUEST.id].segments, by_request[REQUEST.id].rows) == (2, 25)
    assert (by_request[SCORED.id].segments, by_request[SCORED.id].rows) == (1, 7)
    paths = [path for path in segments_in(directory) if path.parent.name == SCORED.id]
    files = [file for path in paths for file in path.glob("*.npy")]
    assert by_request[SCORED.id].bytes == sum(file.stat().st_size for file in files)
    assert by_request[SCORED.id].request.model == "demo"


def test_status_and_verify_name_what_cannot_be_used(directory):
    damaged = segments_in(directory)[0]
    (damaged / "keys.npy").unlink()
    problems = [Problem(damaged, f"[Errno 2] No such file or directory: '{damaged / 'keys.npy'}'")]
    assert status(directory)[1] == problems
    assert verify(directory) == (2, problems)
    assert damaged.exists()
    assert verify(directory, remove=True) == (2, problems)
    assert not damaged.exists()
    assert verify(directory) == (2, [])


@pytest.mark.parametrize("function", [status, verify, lambda path: drop(path, "a")])
def test_a_store_that_is_not_there_is_an_input_error(tmp_path, function):
    with pytest.raises(InputError, match="none: is not a folder"):
        function(tmp_path / "none")


def test_a_request_is_dropped_alone(directory):
    assert drop(directory, REQUEST.id[:8]) == 2
    assert not taken(fresh(directory), range(20)).any()
    assert taken(fresh(directory), range(7), SCORED).all()
    assert [one.request for one in status(directory)[0]] == [SCORED]
    add(fresh(directory), range(3))
    assert taken(fresh(directory), range(3)).all()


def test_a_request_is_meant_by_how_its_id_begins(directory):
    assert find_request(directory, SCORED.id) == SCORED.id
    assert read_request(directory, SCORED.id[:6]) == SCORED
    with pytest.raises(InputError, match="has 2 requests that begin with ''"):
        find_request(directory, "")
    with pytest.raises(InputError, match="has no requests that begin with 'x'") as caught:
        find_request(directory, "x")
    assert REQUEST.id in caught.value.hint


def test_a_request_whose_segments_are_all_damaged_cannot_be_read(directory):
    for path in segments_in(directory):
        (path / "manifest.json").write_text("{")
    with pytest.raises(DataError, match="no segment of the request"):
        read_request(directory, SCORED.id)


def test_the_id_of_a_request_stays_what_it_is():
    """Another id would forget all that is stored."""
    first = dataclasses.replace(REQUEST, engine=1)
    assert first.id == "8ac55c6678c30709b8283e9e39f22617"
    assert make_request(model="other").id == REQUEST.id
