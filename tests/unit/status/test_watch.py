import os
import pty
import subprocess
import sys

from tests.unit.status.workdirs import Workdir
from virnucpro.status.watch import watch


def test_line_is_said_when_something_changed_until_the_run_is_over(tmp_path):
    workdir = Workdir(tmp_path / "run")
    said, looks = [], iter(range(100))

    def is_running():
        look = next(looks)
        if look == 10:
            workdir.take_back("00001")
        return look < 40

    watch(workdir.root, is_running, said.append, interval=0.001)
    assert len(said) == 2
    assert "1/1 samples, shards: 4 done" in said[0]
    assert "0/1 samples, shards: 3 done, 1 to do" in said[1]


def test_nothing_is_said_of_a_folder_that_is_not_there(tmp_path):
    looks = iter([True] * 20 + [False] * 2)
    said = []
    watch(tmp_path, lambda: next(looks), said.append, interval=0.001)
    assert said == []


# `snakemake` is another module here: it sleeps, and ends with a status of its own.
RUN = """
import sys
from pathlib import Path
from virnucpro.cli import main, run
run._PROGRESS_SECONDS = 0.2
sys.argv = ["virnucpro", "run", "-o", sys.argv[1]]
main()
"""


def call(tmp_path, **streams):
    workdir = Workdir(tmp_path / "run")
    (tmp_path / "snakemake.py").write_text("import sys, time\ntime.sleep(2)\nsys.exit(7)\n")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, "-c", RUN, str(workdir.root)],
        env=os.environ | {"PYTHONPATH": path},
        **streams,
    )


def test_run_shows_one_line_on_a_terminal_and_ends_as_snakemake_does(tmp_path):
    ours, terminal = pty.openpty()
    process = call(tmp_path, stderr=terminal)
    os.close(terminal)
    text = b""
    try:
        while chunk := os.read(ours, 4096):
            text += chunk
    except OSError:  # all who had the terminal are gone: the child too
        pass
    assert process.wait(timeout=30) == 7
    assert text.decode().count("virnucpro: 1/1 samples, shards: 4 done") == 1


def test_run_is_quiet_where_there_is_no_terminal(tmp_path):
    process = call(tmp_path, stderr=subprocess.PIPE)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 7
    assert said == b""
