"""A store never fails a run: what is not whole is not used and is named, and nothing is lost."""

import contextlib
import errno
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from tests.faults.injector import Injector, Killed, new_process
from tests.faults.test_disk import mounted
from tests.unit.store.stores import SCORED, add, empty_like, fresh, make_keys, segments_in, taken
from virnucpro import files
from virnucpro.errors import VirnucproError
from virnucpro.store.compaction import compact
from virnucpro.store.maintenance import drop, verify
from virnucpro.store.segment import MANIFEST
from virnucpro.store.store import Store
from virnucpro.store.writing import remove_segment

NAMES = ["crc32.npy", "embeddings.npy", "keys.npy", "manifest.json", "pseudo_perplexity.npy"]


def kept(directory):
    """The rows 0 to 19, of which the segment of 10 to 19 is returned."""
    add(fresh(directory), range(10), SCORED)
    (first,) = segments_in(directory)
    add(fresh(directory), range(10, 20), SCORED)
    (second,) = set(segments_in(directory)) - {first}
    return second


def check_is_named_and_left_out(directory, segment, caplog, rows=10):
    caplog.clear()
    store = fresh(directory)
    assert taken(store, range(20), SCORED).sum() == rows
    assert taken(store, range(20), SCORED).sum() == rows
    assert caplog.text.count(f"{segment} is not used: ") == 1  # once in a run


@pytest.mark.fault(60)
@pytest.mark.parametrize("name", NAMES)
def test_no_flipped_byte_gives_other_values(tmp_path, name):
    segment = kept(tmp_path)
    whole = (segment / name).read_bytes()
    step = 1 if len(whole) < 300 else 7
    for place in [*range(0, 128, 16), *range(128, len(whole), step)]:
        damaged = bytearray(whole)
        damaged[place] ^= 0x10
        (segment / name).write_bytes(damaged)
        # each value that is taken is compared; rows beside a damaged one may be taken
        assert taken(fresh(tmp_path), range(20), SCORED).sum() >= 10
        assert verify(tmp_path)[0] == 1
    (segment / name).write_bytes(whole)
    assert taken(fresh(tmp_path), range(20), SCORED).all()


@pytest.mark.fault(60)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("length", [0, 0.5, -3], ids=["empty", "half", "without its end"])
def test_a_file_that_is_cut_short_is_named(tmp_path, name, length, caplog):
    segment = kept(tmp_path)
    whole = (segment / name).read_bytes()
    (segment / name).write_bytes(whole[: int(length * len(whole)) if length >= 0 else length])
    check_is_named_and_left_out(tmp_path, segment, caplog)


@pytest.mark.fault(60)
@pytest.mark.parametrize("name", NAMES)
def test_a_segment_that_is_half_copied_is_used_once_it_is_whole(tmp_path, name, caplog):
    segment = kept(tmp_path)
    (segment / name).rename(tmp_path / "later")
    check_is_named_and_left_out(tmp_path, segment, caplog)
    (tmp_path / "later").rename(segment / name)
    assert taken(fresh(tmp_path), range(20), SCORED).all()


@pytest.mark.fault(60)
def test_files_of_another_segment_are_not_used(tmp_path, caplog):
    segment = kept(tmp_path)
    (other,) = set(segments_in(tmp_path)) - {segment}
    for name in NAMES:
        shutil.copy(other / name, segment / name)
    check_is_named_and_left_out(tmp_path, segment, caplog)


@pytest.mark.fault(60)
def test_another_format_is_named_and_not_used_and_not_removed(tmp_path, caplog):
    segment = kept(tmp_path)
    manifest = json.loads((segment / MANIFEST).read_text())
    files.write_json(segment / MANIFEST, manifest | {"format": 99}, sealed=True)
    check_is_named_and_left_out(tmp_path, segment, caplog)
    assert "format 99, this version of virnucpro uses format 1" in caplog.text
    whole, problems = verify(tmp_path, remove=True)
    assert (whole, [problem.path for problem in problems]) == (1, [segment])
    assert segment.exists()


@pytest.mark.fault(60)
def test_damaged_rows_are_taken_from_another_store(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    segment = kept(one)
    shutil.copytree(one, two)
    content = bytearray((segment / "embeddings.npy").read_bytes())
    content[-1] ^= 1
    (segment / "embeddings.npy").write_bytes(content)
    assert not taken(fresh(one), range(20), SCORED).all()
    assert taken(fresh(one, two), range(20), SCORED).all()


@pytest.mark.fault(60)
def test_damaged_segments_are_written_anew_by_who_has_their_rows(tmp_path, caplog):
    segment = kept(tmp_path)
    (segment / "embeddings.npy").write_bytes(b"")
    assert add(fresh(tmp_path), range(10, 20), SCORED) == 10
    assert f"{segment} is written anew" in caplog.text
    assert taken(fresh(tmp_path), range(20), SCORED).all()
    assert verify(tmp_path) == (2, [])


@pytest.mark.fault(60)
@pytest.mark.parametrize("what", ["segment", "store"])
def test_what_is_removed_during_a_run_is_computed_anew(tmp_path, what, caplog):
    segment = kept(tmp_path / "store")
    keys, store = make_keys(range(20)), fresh(tmp_path / "store")
    known = store.look_up(SCORED, keys)
    assert known.found.all()
    arrays = empty_like(keys, SCORED)
    shutil.rmtree(segment if what == "segment" else tmp_path / "store")
    filled = store.fill(known, arrays).filled
    assert filled.sum() == (10 if what == "segment" else 0)
    assert f"{20 - filled.sum()} rows that the store had could not be taken" in caplog.text


@pytest.mark.fault(61)
def test_rows_that_are_compacted_between_look_up_and_use_are_found_again(tmp_path, caplog):
    kept(tmp_path)
    keys, store = make_keys(range(20)), fresh(tmp_path)
    known = store.look_up(SCORED, keys)
    assert compact(tmp_path).merged == 2
    assert store.fill(known, empty_like(keys, SCORED)).filled.all()
    assert caplog.text == ""


@pytest.mark.fault(61)
def test_rows_that_are_compacted_during_a_look_up_are_found(tmp_path, monkeypatch):
    kept(tmp_path)
    store = fresh(tmp_path)
    honest = Store.segments

    def overtaken(self, request):
        found = honest(self, request)
        compact(tmp_path)
        return found

    monkeypatch.setattr(Store, "segments", overtaken)
    assert store.look_up(SCORED, make_keys(range(20))).found.all()


@pytest.mark.fault(60)
@pytest.mark.parametrize("code", [errno.ESTALE, errno.EIO, errno.ENOENT])
@pytest.mark.parametrize("call", ["open", "read_bytes", "stat"])
def test_what_a_network_file_system_says_of_a_file_that_went_is_no_error(
    tmp_path, monkeypatch, code, call
):
    segment = kept(tmp_path)
    honest = getattr(Path, call)

    def stale(self, *arguments, **options):
        if self.parent == segment:
            raise OSError(code, os.strerror(code), str(self))
        return honest(self, *arguments, **options)

    monkeypatch.setattr(Path, call, stale)
    assert taken(fresh(tmp_path), range(20), SCORED).sum() == 10


@contextlib.contextmanager
def as_nobody():
    """Be a user who owns nothing, where the tests are run by root."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@pytest.fixture
def shared():
    """A folder that every user may look into."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.mark.fault(60)
@pytest.mark.parametrize("name", [".", *NAMES])
def test_what_another_owner_keeps_to_himself_is_named_and_not_used(shared, name, caplog):
    segment = kept(shared)
    (segment / name).chmod(0)
    with as_nobody():
        check_is_named_and_left_out(shared, segment, caplog)
    assert "Permission denied" in caplog.text
    (segment / name).chmod(0o755)


@pytest.mark.fault(60)
def test_a_store_that_cannot_be_listed_is_named(shared, caplog):
    store = shared / "store"
    kept(store)
    store.chmod(0)
    with as_nobody():
        assert not taken(fresh(store), range(20), SCORED).any()
        assert f"store {store / SCORED.id} is not used: " in caplog.text
    store.chmod(0o755)


@pytest.mark.fault(60)
def test_a_store_of_another_owner_is_read_and_rows_go_to_the_next(shared, caplog):
    theirs, ours = shared / "theirs", shared / "ours"
    kept(theirs)
    for folder in (theirs, *theirs.iterdir()):
        folder.chmod(0o555)
    ours.mkdir()
    ours.chmod(0o777)
    before = sorted(theirs.rglob("*"))
    with as_nobody():
        assert taken(fresh(theirs), range(20), SCORED).all()
        assert add(fresh(theirs), range(20, 30), SCORED) == 0
        assert "10 rows are kept in no store" in caplog.text
        assert add(fresh(theirs, ours), range(20, 30), SCORED) == 10
        assert taken(fresh(theirs, ours), range(30), SCORED).all()
    assert sorted(theirs.rglob("*")) == before


@pytest.mark.fault(60)
def test_a_read_only_disk_is_read(tmp_path, caplog):
    with mounted(tmp_path / "disk", "8m"):
        kept(tmp_path / "disk")
        subprocess.run(["mount", "-o", "remount,ro", str(tmp_path / "disk")], check=True)
        assert taken(fresh(tmp_path / "disk"), range(20), SCORED).all()
        assert add(fresh(tmp_path / "disk"), range(5), SCORED) == 0
        assert "Read-only file system" in caplog.text


@pytest.mark.fault(60)
def test_a_full_disk_is_named_and_more_room_is_all_that_is_needed(tmp_path, caplog):
    disk = tmp_path / "disk"
    with mounted(disk, "1m"):
        kept(disk)
        before = sorted(disk.rglob("*"))
        with contextlib.suppress(OSError), (disk / "room").open("wb") as handle:
            while True:
                handle.write(bytes(4096))
        assert add(fresh(disk), range(20, 500), SCORED) == 0
        assert "no space" in caplog.text.lower()
        assert taken(fresh(disk), range(20), SCORED).all()
        assert sorted(disk.rglob("*")) == sorted([*before, disk / "room"])
        (disk / "room").unlink()
        assert add(fresh(disk), range(20, 500), SCORED) == 480


def strays(directory):
    return [path for path in directory.rglob("*") if path.name.startswith(".")]


def interrupted(monkeypatch, injector, work):
    """Do some work with an injector; gives what it ended with."""
    monkeypatch.setattr(files, "os", injector)
    try:
        work()
    except (Killed, OSError, VirnucproError) as error:
        return error
    finally:
        monkeypatch.setattr(files, "os", os)
    return None


STEPS = {
    "add": lambda directory: add(fresh(directory), range(20, 30), SCORED),
    "add again": lambda directory: add(fresh(directory), range(10, 20), SCORED),
    "compact": compact,
    "remove": lambda directory: remove_segment(segments_in(directory)[0]),
    "drop": lambda directory: drop(directory, SCORED.id),
}


@pytest.mark.fault(60, 61)
@pytest.mark.parametrize(
    ("fault", "stride"),
    [
        pytest.param(None, 1, id="kill"),
        pytest.param(errno.ENOSPC, 3, id="full"),
        pytest.param(errno.EIO, 1, id="failing disk", marks=pytest.mark.long),
    ],
)
@pytest.mark.parametrize("step", STEPS)
def test_whatever_call_fails_every_row_is_whole_and_the_step_can_be_repeated(
    tmp_path, monkeypatch, step, fault, stride
):
    kept(tmp_path / "start")
    work = STEPS[step]
    shutil.copytree(tmp_path / "start", tmp_path / "calm")
    counter = Injector()
    assert interrupted(monkeypatch, counter, lambda: work(tmp_path / "calm")) is None
    assert counter.calls > 3
    names = [path.name for path in segments_in(tmp_path / "calm")]
    removes = step in ("remove", "drop")
    for at in range(0, counter.calls, stride):
        store = tmp_path / str(at)
        shutil.copytree(tmp_path / "start", store)
        new_process()
        error = interrupted(monkeypatch, Injector(at, fault), lambda: work(store))  # noqa: B023
        assert isinstance(error, Killed) or fault is not None
        assert verify(store)[1] == [], at
        assert removes or taken(fresh(store), range(20), SCORED).all(), at
        new_process()
        if len(segments_in(store)) == 2 or not removes:
            work(store)
        add(fresh(store), range(10), SCORED)  # whoever writes next removes what was left
        assert strays(store) == [], at
        if not removes:
            assert taken(fresh(store), range(20), SCORED).all(), at
            assert set(names) <= {path.name for path in segments_in(store)}, at
        shutil.rmtree(store)


ADDS = """
import sys
from pathlib import Path
from tests.unit.store.stores import SCORED, add, fresh
first, last, step = map(int, sys.argv[2:])
for start in range(first, last, step):
    assert add(fresh(Path(sys.argv[1])), range(start, start + step), SCORED) == step
"""
COMPACTS = """
import sys, time
from pathlib import Path
from virnucpro.store.compaction import compact
while not Path(sys.argv[1], "stop").exists():
    compact(Path(sys.argv[1]))
"""
READS = """
import sys
from pathlib import Path
from tests.unit.store.stores import SCORED, fresh, taken
times = 0
while not Path(sys.argv[1], "stop").exists():
    assert taken(fresh(Path(sys.argv[1])), range(20), SCORED).all(), times
    times += 1
assert times > 3, times
"""


def start(code, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=Path(__file__).parents[2],
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.fault(61)
def test_writers_readers_and_compactions_at_once_lose_nothing(tmp_path):
    """Two processes add the same rows, others add more, two compact, two read all the while."""
    kept(tmp_path)
    others = [start(code, tmp_path) for code in (COMPACTS, COMPACTS, READS, READS)]
    writers = [
        start(ADDS, tmp_path, *span) for span in [(20, 400, 10), (20, 400, 10), (400, 800, 20)]
    ]
    for writer in writers:
        assert writer.wait(timeout=240) == 0, writer.stderr.read()
    (tmp_path / "stop").touch()
    for other in others:
        assert other.wait(timeout=240) == 0, other.stderr.read()
    assert verify(tmp_path)[1] == []
    assert taken(fresh(tmp_path), range(800), SCORED).all()
    compact(tmp_path)
    assert len(segments_in(tmp_path)) == 1
    assert taken(fresh(tmp_path), range(800), SCORED).all()
    assert strays(tmp_path) == []


@pytest.mark.fault(61)
def test_a_process_that_is_killed_while_it_adds_or_compacts_loses_nothing(tmp_path):
    kept(tmp_path)
    for number in range(4):
        code, arguments = (COMPACTS, ()) if number % 2 else (ADDS, (100 * number, 100000, 10))
        process = start(code, tmp_path, *arguments)
        time.sleep(1 + 0.37 * number)
        process.kill()
        process.wait()
        assert verify(tmp_path)[1] == []
        assert taken(fresh(tmp_path), range(20), SCORED).all()
    add(fresh(tmp_path), range(3), SCORED)
    compact(tmp_path)
    assert strays(tmp_path) == []
    assert taken(fresh(tmp_path), range(20), SCORED).all()
