import io
import logging
import os
import pty
import subprocess
import sys

import pytest

from virnucpro import log
from virnucpro.progress import Logged, Progress, read_progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_line_comes_when_the_interval_has_passed_and_at_the_end(caplog):
    times = iter([0.0, 4.0, 9.0, 12.0, 13.0, 20.0])
    progress = Progress(1000, interval=10, clock=lambda: next(times))
    with caplog.at_level(logging.INFO):
        seconds = [progress.step(amount) for amount in (100, 100, 100, 100, 600)]
    assert seconds == [4.0, 5.0, 3.0, 1.0, 7.0]
    assert [record.getMessage() for record in caplog.records] == [
        " 30.0% of 1,000 tokens, 25 tokens/s, 28 s left",
        "1,000 tokens in 20.0 s, 50 tokens/s",
    ]


def test_what_was_done_before_counts_for_the_share_but_not_for_the_rate(caplog):
    times = iter([0.0, 10.0, 20.0])
    progress = Progress(1000, done=500, interval=10, clock=lambda: next(times))
    with caplog.at_level(logging.INFO):
        progress.step(100)
        progress.step(400)
    assert [record.getMessage() for record in caplog.records] == [
        " 60.0% of 1,000 tokens, 10 tokens/s, 40 s left",
        "500 tokens in 20.0 s, 25 tokens/s",
    ]


def test_lines_begin_with_what_they_are_about(caplog):
    times = iter([0.0, 10.0, 20.0])
    progress = Progress(
        1000, "rows", what="phages: writing", interval=10, clock=lambda: next(times)
    )
    with caplog.at_level(logging.INFO):
        progress.step(50)
        progress.step(950)
    assert [record.getMessage() for record in caplog.records] == [
        "phages: writing 5.0% of 1,000 rows, 5 rows/s, 190 s left",
        "phages: writing 1,000 rows in 20.0 s, 50 rows/s",
    ]


def test_where_the_end_is_not_known_amount_and_rate_are_shown(caplog, monkeypatch):
    times = iter([0.0, 10.0])
    with caplog.at_level(logging.INFO):
        Progress(None, "bytes", interval=10, clock=lambda: next(times)).step(5000)
    assert caplog.messages == ["5,000 bytes, 500 bytes/s"]
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    log.configure()
    progress = Progress(None, "bytes", what="phages: reading")
    progress.step(5000)
    progress._bar.refresh()
    progress.close()
    assert "phages: reading 5.00k bytes, " in terminal.getvalue()
    assert "%" not in terminal.getvalue()


def test_the_last_line_comes_once_also_where_there_was_more_than_the_total(caplog):
    progress = Progress(100, "bytes")
    with caplog.at_level(logging.INFO):
        progress.step(100)
        progress.step(20)
    assert len(caplog.messages) == 1


def test_on_a_terminal_there_is_a_bar_with_rate_share_and_time_left(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    log.configure()
    times = iter([0.0, 40.0, 80.0])
    progress = Progress(1000, what="shard 00003:", interval=10, clock=lambda: next(times))
    progress.step(600)
    progress._bar.refresh()
    shown = terminal.getvalue()
    assert "shard 00003" in shown
    assert "60%" in shown
    assert "600 of 1.00k tokens" in shown
    assert " tokens/s, " in shown
    assert " left" in shown
    progress.step(400)
    assert "INFO" in terminal.getvalue().splitlines()[-1]  # the bar has gone, a line is left


@pytest.mark.parametrize("stream", [Terminal, io.StringIO])
def test_quiet_shows_no_progress(monkeypatch, stream):
    quiet = stream()
    monkeypatch.setattr("sys.stderr", quiet)
    log.configure(-1)
    times = iter([0.0, 40.0, 80.0])
    progress = Progress(1000, clock=lambda: next(times))
    progress.step(600)
    progress.step(400)
    progress.close()
    assert quiet.getvalue() == ""


def test_a_log_file_gets_no_control_characters(monkeypatch):
    file = io.StringIO()
    monkeypatch.setattr("sys.stderr", file)
    log.configure()
    times = iter([0.0, 40.0, 80.0])
    progress = Progress(1000, what="shard", clock=lambda: next(times))
    progress.step(600)
    progress.step(400)
    assert len(file.getvalue().splitlines()) == 2
    assert all(character.isprintable() or character == "\n" for character in file.getvalue())


def test_bar_is_shown_on_a_terminal_that_does_not_tell_its_size(tmp_path):
    """A real terminal of 0 columns and 0 lines, as some containers and editors have."""
    script = "from virnucpro import log; log.configure(); from virnucpro.progress import Progress\n"
    script += "import time; p = Progress(100, what='shard'); time.sleep(0.2); p.step(60); p.close()"
    ours, theirs = pty.openpty()
    environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")}
    subprocess.run([sys.executable, "-c", script], stderr=theirs, env=environment, check=True)
    os.close(theirs)
    assert "60%" in os.read(ours, 100_000).decode()
    os.close(ours)


def test_logged_lines_can_be_read_again_and_others_are_none(caplog):
    clock = iter([0.0, 40.0, 80.0, 100.0])
    progress = Progress(1_234_567, what="shard 3:", clock=lambda: next(clock))
    with caplog.at_level(logging.INFO):
        progress.step(400_000)
        progress.step(834_567)
    first, last = caplog.messages
    logged = read_progress(f"2026-11-22 06:31:04 INFO    {first}")
    assert logged == Logged(pytest.approx(400_000, abs=1_234), 1_234_567, 10_000.0)
    assert read_progress(last) is None
    assert read_progress("12% of 100 people, 3 people/s") is None
