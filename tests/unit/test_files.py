import errno
import hashlib
import json
import os
import subprocess
import sys

import pytest

from virnucpro import files, temporary
from virnucpro.errors import DataError


def test_target_appears_only_when_whole(tmp_path):
    target = tmp_path / "deep" / "a.txt"
    with files.atomic_path(target) as temporary:
        temporary.write_text("half")
        assert not target.exists()
        assert temporary.parent == target.parent
    assert target.read_text() == "half"
    assert os.listdir(target.parent) == ["a.txt"]


def test_failed_block_leaves_old_target_and_no_temporary_file(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(RuntimeError), files.atomic_path(target) as temporary:
        temporary.write_text("new")
        raise RuntimeError
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.fault(5)
def test_full_disk_names_the_target_and_leaves_nothing(tmp_path):
    target = tmp_path / "a.txt"
    message = r"No space left on device: '.*a\.txt'"
    with pytest.raises(OSError, match=message) as caught, files.atomic_path(target) as temporary:
        temporary.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.errno == errno.ENOSPC
    assert os.listdir(tmp_path) == []


@pytest.mark.fault(13)
def test_two_writers_of_one_target_do_not_meet(tmp_path):
    target = tmp_path / "a.txt"
    with files.atomic_path(target) as one, files.atomic_path(target) as two:
        assert one != two
        one.write_text("same")
        two.write_text("same")
    assert target.read_text() == "same"


@pytest.mark.fault(4)
def test_data_and_folder_are_synced_before_and_after_the_rename(tmp_path, monkeypatch):
    calls = []
    real_fsync, real_replace = os.fsync, os.replace

    def fsync(descriptor):
        calls.append("folder" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "file")
        return real_fsync(descriptor)

    def replace(source, target):
        calls.append("rename")
        return real_replace(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    files.write_bytes(tmp_path / "a", b"x")
    assert calls == ["file", "rename", "folder"]


def test_long_target_names_still_get_a_temporary_name(tmp_path):
    target = tmp_path / ("n" * 250)
    files.write_bytes(target, b"x")
    assert target.read_bytes() == b"x"


def test_json_round_trip_is_byte_deterministic(tmp_path):
    value = {"b": [1, 2.5, None], "a": "ü"}
    files.write_json(tmp_path / "1", value)
    files.write_json(tmp_path / "2", json.loads((tmp_path / "1").read_text()))
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()
    assert files.read_json(tmp_path / "1") == value


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff"])
def test_damaged_json_is_named(tmp_path, content):
    path = tmp_path / "receipt.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"receipt\.json"):
        files.read_json(path)


def test_missing_json_is_named(tmp_path):
    with pytest.raises(DataError, match="missing"):
        files.read_json(tmp_path / "none.json")


@pytest.mark.fault(6)
def test_reserving_more_than_the_disk_has_says_needed_and_free(tmp_path, monkeypatch):
    def full(*_arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(DataError, match=r"1,000,000 bytes are needed, [\d,]+ are free"):
        files.reserve(tmp_path / "big", 1_000_000)
    assert os.listdir(tmp_path) == []


def test_reserving_keeps_what_is_there(tmp_path):
    path = tmp_path / "array"
    path.write_bytes(b"header")
    files.reserve(path, 100)
    assert path.read_bytes() == b"header" + bytes(94)


@pytest.mark.parametrize("size", [0, 1, (1 << 24) + 3])
def test_hash_is_that_of_all_bytes(tmp_path, size):
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * (size // 256) + bytes(size % 256))
    expected = hashlib.sha256(path.read_bytes()).hexdigest()
    assert files.sha256_of(path) == expected
    assert files.sha256_in_background(path).result() == expected


def test_hashing_meanwhile_hands_on_what_went_wrong(tmp_path):
    with pytest.raises(FileNotFoundError):
        files.sha256_in_background(tmp_path / "absent").result()


@pytest.mark.fault(7)
def test_sealed_json_is_refused_with_any_flipped_bit(tmp_path):
    path = tmp_path / "receipt.json"
    files.write_json(path, {"text": "ü", "number": 12.5, "list": [1, None]}, sealed=True)
    content = path.read_bytes()
    whole = files.read_json(path)
    assert whole == {"text": "ü", "number": 12.5, "list": [1, None]}
    for place in range(8 * len(content)):
        damaged = bytearray(content)
        damaged[place // 8] ^= 1 << place % 8
        path.write_bytes(damaged)
        try:
            found = files.read_json(path)
        except DataError:
            continue
        assert found == whole  # white space


def test_sealed_json_is_sealed_anew(tmp_path):
    path = tmp_path / "receipt.json"
    files.write_json(path, {"a": 1}, sealed=True)
    files.write_json(path, files.read_json(path) | {"b": 2}, sealed=True)
    assert files.read_json(path) == {"a": 1, "b": 2}


def leave(folder, space, process):
    path = folder / f".a.txt.{space}.{process}.0123abcd.tmp"
    path.mkdir() if process % 2 else path.write_text("half")
    return path


@pytest.mark.fault(1)
def test_what_a_killed_writer_left_is_removed_by_the_next(tmp_path):
    ended = subprocess.Popen(["true"])
    ended.wait()
    here = temporary._process_space()
    dead = leave(tmp_path, here, ended.pid)
    alive = leave(tmp_path, here, os.getppid())
    elsewhere = leave(tmp_path, "0" * 8, 4)
    forgotten = leave(tmp_path, "0" * 8, 6)
    os.utime(forgotten, (0, 0))
    (tmp_path / ".a.txt.tmp").write_text("a file of the user's")
    files.write_bytes(tmp_path / "a.txt", b"x")
    assert not dead.exists()
    assert not forgotten.exists()
    assert {path.name for path in tmp_path.iterdir()} == {
        *(alive.name, elsewhere.name, ".a.txt.tmp", "a.txt")
    }


def test_a_process_does_not_wait_for_a_hash_that_it_does_not_need(tmp_path):
    path = tmp_path / "pipe"  # nobody writes: reading it never ends
    os.mkfifo(path)
    code = (
        "import sys; from pathlib import Path; from virnucpro.files import sha256_in_background\n"
        "sha256_in_background(Path(sys.argv[1]))\n"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=True, timeout=60)
