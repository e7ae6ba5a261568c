"""Every system call of `virnucpro.files` fails once, in every step; then the step is run again."""

import errno
import shutil

import pytest

from tests.faults.injector import Injector, Killed, new_process
from tests.faults.small import STEPS, Small, stand_ins
from virnucpro import files
from virnucpro.embed import checkpoints
from virnucpro.errors import VirnucproError

# An errno, None for a kill or the exception of a signal; and of how many calls one fails.
FAULTS = [
    pytest.param(None, 1, id="kill"),
    pytest.param(SystemExit(143), 5, id="SIGTERM"),
    pytest.param(errno.ENOSPC, 5, id="no space"),
    pytest.param(errno.ENOSPC, 1, id="no space, every call", marks=pytest.mark.long),
    pytest.param(errno.EIO, 1, id="failing disk", marks=pytest.mark.long),
]
TEMPORARY = (".tmp", ".partial", ".checkpoint")


@pytest.fixture
def quick(monkeypatch):
    """The stand-ins, and three checkpoints a shard."""
    stand_ins(monkeypatch)
    monkeypatch.setattr(checkpoints, "_SHARE", 0.4)
    monkeypatch.setattr(checkpoints, "_SECONDS", 0.0)


@pytest.fixture
def before(tmp_path, quick):
    """Give a function: the folder as it is before a step of an undisturbed run."""
    calm = Small(tmp_path / "calm", tmp_path / "inputs")
    calm.write_inputs()
    calm.folder.mkdir()

    def make(step):
        for name in STEPS[: STEPS.index(step)]:
            getattr(calm, name)()
        return calm

    return make


def strays(small):
    return [
        path
        for path in small.folder.rglob("*")
        if path.name.startswith(".") or path.name.endswith(TEMPORARY)
    ]


def run(small, step, injector, monkeypatch):
    """Run a step with an injector; gives what it ended with."""
    monkeypatch.setattr(files, "os", injector)
    try:
        getattr(small, step)()
    except (Killed, OSError, VirnucproError, SystemExit) as error:
        return error
    finally:
        monkeypatch.setattr(files, "os", __import__("os"))
    return None


@pytest.mark.fault(1, 2, 3, 4, 5, 14)
@pytest.mark.parametrize(("fault", "stride"), FAULTS)
@pytest.mark.parametrize("step", STEPS)
def test_after_any_failing_call_the_step_comes_to_the_same_bytes(
    step, fault, stride, before, tmp_path, monkeypatch
):
    calm = before(step)
    start = Small(tmp_path / "start", calm.inputs)
    shutil.copytree(calm.folder, start.folder)
    counter = Injector()
    assert run(calm, step, counter, monkeypatch) is None
    expected = calm.contents()
    assert counter.calls > 4
    for at in range(0, counter.calls, stride):
        small = Small(tmp_path / f"{at}", calm.inputs)
        shutil.copytree(start.folder, small.folder)
        new_process()
        injector = Injector(at, fault)
        error = run(small, step, injector, monkeypatch)
        found = {name: content for name, content in small.contents().items() if name in expected}
        assert found == {name: expected[name] for name in found}, f"call {at}: half a file"
        if fault is None:
            # on a busy machine a shard gets fewer checkpoints, and the call is not reached
            assert isinstance(error, Killed) or injector.calls <= at, at
        elif isinstance(fault, SystemExit):
            assert error is fault or step == "embed"  # where a thread writes the checkpoints
            assert [path for path in strays(small) if "checkpoints" not in str(path)] == []
        elif error is not None:
            assert str(small.folder) in str(error), f"call {at} names no path: {error}"
        new_process()
        getattr(small, step)()
        assert small.contents() == expected, f"call {at}"
        assert strays(small) == [], f"call {at}"
        shutil.rmtree(small.folder)


@pytest.mark.fault(3)
def test_any_failing_call_in_a_second_merge_leaves_the_first_result_whole(
    before, tmp_path, monkeypatch
):
    calm = before("report")  # merged
    whole = calm.contents()
    counter = Injector()
    assert run(calm, "merge", counter, monkeypatch) is None
    for at in range(counter.calls):
        new_process()
        assert isinstance(run(calm, "merge", Injector(at), monkeypatch), Killed)
        assert {name: calm.contents().get(name) for name in whole} == whole, at
    new_process()
    calm.merge()
    assert calm.contents() == whole
    assert strays(calm) == []
