import io
import json
import logging
from pathlib import PurePath

import pytest

from virnucpro import __version__, log
from virnucpro.errors import DataError, InputError
from virnucpro.progress import Progress
from virnucpro.sequences.manifest import RecordCounts

logger = logging.getLogger("virnucpro.test")


class Terminal(io.StringIO):
    def isatty(self):
        return True


def configured(monkeypatch, stream, verbosity=0):
    monkeypatch.setattr("sys.stderr", stream)
    log.configure(verbosity)
    return stream


@pytest.mark.parametrize(
    ("verbosity", "shown"), [(-1, ["w"]), (0, ["i", "w"]), (1, ["d", "i", "w"])]
)
def test_verbosity_says_what_is_shown(monkeypatch, verbosity, shown):
    stream = configured(monkeypatch, io.StringIO(), verbosity)
    logger.debug("d")
    logger.info("i")
    logger.warning("w")
    assert [line.split()[-1] for line in stream.getvalue().splitlines()] == shown


def test_a_step_ends_with_one_line_for_machines(monkeypatch):
    stream = configured(monkeypatch, io.StringIO())
    with log.step("merge") as result:
        logger.info("working")
        result["embedded"] = 7
    lines = stream.getvalue().splitlines()
    assert len(lines) == 2
    line = json.loads(lines[-1])
    assert line["step"] == "merge"
    assert line["status"] == "done"
    assert line["version"] == __version__
    assert line["result"] == {"embedded": 7}
    assert 0 <= line["seconds"] < 10
    assert line["peak_memory_bytes"] > 1 << 20


def test_a_failed_step_says_so_to_machines_too(monkeypatch):
    stream = configured(monkeypatch, io.StringIO())
    with pytest.raises(DataError), log.step("merge"):
        raise DataError("is\nmissing", path="x.npy")
    line = json.loads(stream.getvalue().splitlines()[-1])
    assert (line["status"], line["error"]) == ("failed", "x.npy: is\nmissing")
    assert "result" not in line
    assert line["exit_status"] == 1


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (InputError("x"), "failed", 2),
        (OSError(5, "io"), "failed", 1),
        (MemoryError(), "failed", 1),
        (RuntimeError("CUDA error"), "failed", 1),
        (SystemExit(143), "interrupted", 143),
        (KeyboardInterrupt(), "interrupted", 130),
    ],
)
def test_every_ending_has_its_line(monkeypatch, error, status, code):
    stream = configured(monkeypatch, io.StringIO())
    with pytest.raises(type(error)), log.step("merge"):
        raise error
    line = json.loads(stream.getvalue().splitlines()[-1])
    assert (line["status"], line["exit_status"]) == (status, code)
    assert line["error"]


@pytest.mark.parametrize(
    ("ending", "status", "error"),
    [
        (DataError("is missing", path="x.npy", hint="look"), "failed", "x.npy: is missing"),
        (OSError(5, "Input/output error", "x"), "failed", "[Errno 5] Input/output error: 'x'"),
        (MemoryError(), "failed", "MemoryError"),
        (MemoryError("Unable to allocate"), "failed", "MemoryError: Unable to allocate"),
        (RuntimeError("CUDA error: illegal"), "failed", "RuntimeError: CUDA error: illegal"),
        (KeyError("a"), "failed", "KeyError: 'a'"),
        (SystemExit(3), "failed", "exit status 3"),
        (SystemExit("text"), "failed", "text"),
        (SystemExit(143), "interrupted", "SIGTERM"),
        (SystemExit(130), "interrupted", "SIGINT"),
        (KeyboardInterrupt(), "interrupted", "SIGINT"),
        (GeneratorExit(), "failed", "GeneratorExit"),
    ],
    ids=repr,
)
def test_every_ending_of_a_step_is_one_line_for_machines(monkeypatch, ending, status, error):
    stream = configured(monkeypatch, io.StringIO())
    with pytest.raises(type(ending)) as caught, log.step("embed"):
        raise ending
    assert caught.value is ending
    (line,) = map(json.loads, stream.getvalue().splitlines())
    assert (line["step"], line["status"], line["error"]) == ("embed", status, error)
    assert "result" not in line


@pytest.mark.parametrize("status", [None, 0])
def test_a_step_that_ends_the_program_well_is_done(monkeypatch, status):
    stream = configured(monkeypatch, io.StringIO())
    with pytest.raises(SystemExit), log.step("embed") as result:
        result["steps"] = 3
        raise SystemExit(status)
    line = json.loads(stream.getvalue())
    assert (line["status"], line["result"]) == ("done", {"steps": 3})


def test_an_unprintable_result_does_not_take_the_line_away(monkeypatch):
    stream = configured(monkeypatch, io.StringIO())
    with log.step("embed") as result:
        result["path"] = PurePath("a") / "b"
        result["counts"] = [RecordCounts(5, 4, 1, 0, 0, 0)]
    said = json.loads(stream.getvalue())["result"]
    assert said["path"] == "a/b"
    assert said["counts"][0]["read"] == 5


@pytest.mark.parametrize(("stream", "verbosity"), [(Terminal, 0), (io.StringIO, -1)])
def test_people_and_the_quiet_see_no_line_for_machines(monkeypatch, stream, verbosity):
    shown = configured(monkeypatch, stream(), verbosity)
    with log.step("merge"):
        pass
    assert shown.getvalue() == ""


def test_a_line_on_a_terminal_does_not_run_into_the_bar(monkeypatch):
    terminal = configured(monkeypatch, Terminal())
    progress = Progress(1000, what="shard")
    logger.warning("out of memory")
    progress.close()
    before, _, _ = terminal.getvalue().partition(" WARNING")
    # The bar's line was blanked before the warning was written from its first column.
    assert before.rpartition("\r")[2].startswith("20")
