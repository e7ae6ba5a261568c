"""A disk that is full, a folder that cannot be written to, a folder that goes away."""

import contextlib
import subprocess
import sys

import pytest

from tests.faults.small import STEPS, Small, stand_ins
from virnucpro.errors import VirnucproError


@pytest.fixture
def small(tmp_path, monkeypatch):
    stand_ins(monkeypatch)
    small = Small(tmp_path / "run", tmp_path / "inputs")
    small.write_inputs()
    return small


@contextlib.contextmanager
def mounted(folder, size):
    """Mount a small disk; the test is skipped where that is not allowed."""
    folder.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"mounting a tmpfs is not possible here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def outcome(small, step):
    """Run a step; gives the text of its error, or None."""
    try:
        getattr(small, step)()
    except (OSError, VirnucproError) as error:
        return str(error)
    return None


@pytest.mark.fault(5, 6)
@pytest.mark.parametrize("step", STEPS)
def test_full_disk_is_named_and_more_room_is_all_that_is_needed(step, small, tmp_path):
    with mounted(small.folder, "8m"):
        for name in STEPS[: STEPS.index(step)]:
            getattr(small, name)()
        before = {path for path in small.folder.rglob("*") if path.is_file()}
        room = small.folder / "taken"
        with contextlib.suppress(OSError), room.open("wb") as handle:
            while True:
                handle.write(bytes(4096))
        text = outcome(small, step)
        assert text is not None
        assert "no space" in text.lower()
        assert str(small.folder) in text
        left = {path for path in small.folder.rglob("*") if path.is_file()} - {room}
        assert not any(".tmp" in path.name for path in left - before)
        room.unlink()
        assert outcome(small, step) is None


@pytest.mark.fault(41)
@pytest.mark.parametrize("step", STEPS)
def test_folder_that_cannot_be_written_to_is_named(step, small):
    """Root may write whatever the mode says, so the whole disk is made read-only."""
    with mounted(small.folder, "64m"):
        for name in STEPS[: STEPS.index(step)]:
            getattr(small, name)()
        subprocess.run(["mount", "-o", "remount,ro", str(small.folder)], check=True)
        text = outcome(small, step)
        assert text is not None
        assert "Read-only file system" in text
        assert str(small.folder) in text


@pytest.mark.fault(41)
@pytest.mark.parametrize("step", ["split", "merge", "embed"])
def test_folder_that_cannot_be_written_to_shows_before_the_work(step, small, monkeypatch):
    """Nothing is read, verified or loaded that takes hours before the error comes."""
    from virnucpro.embed import shard
    from virnucpro.merge import sample as merge
    from virnucpro.sequences import split

    for name in STEPS[: STEPS.index(step)]:
        getattr(small, name)()

    def begun(*_arguments, **_options):
        raise AssertionError("the work was begun")

    for module, work in [(split, "_read_all"), (merge, "verify_shards"), (shard, "load_model")]:
        monkeypatch.setattr(module, work, begun)
    small.folder.mkdir(exist_ok=True)
    (small.folder / "file").write_text("a file where the folder should be")
    small.embeddings = small.folder / "file" / "embeddings"
    small.shards = small.folder / "file" / "shards" if step == "split" else small.shards
    small.h5ad = small.folder / "file" / "embeddings.h5ad"
    text = outcome(small, step)
    assert text is not None
    assert "Not a directory" in text or "File exists" in text


DELETE = """
import shutil, sys
from pathlib import Path
from virnucpro import cli
from virnucpro.{module} import {name} as honest
import virnucpro.{place} as place

def gone(*arguments, **options):
    shutil.rmtree("out")
    return honest(*arguments, **options)

place.{name} = gone
cli.main()
"""


@pytest.mark.fault(41)
def test_folder_deleted_while_splitting_is_a_sentence(tmp_path):
    (tmp_path / "in.faa").write_text(">a\nMKVLA\n>b\nMKKKK\n")
    code = DELETE.format(module="sequences.outputs", name="write_records", place="sequences.split")
    result = subprocess.run(
        [
            *(sys.executable, "-c", code, "split", "in.faa", "--sample", "s"),
            *("--shards", "out/shards", "--records", "out/records.parquet"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert "error: " in result.stderr
    assert "out/" in result.stderr
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["in.faa"]
