import json
import logging
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner

from tests.unit.status.workdirs import NOW, PLANNED, Workdir, end_line, set_time
from virnucpro.cli import cli
from virnucpro.embed.checkpoints import Checkpoints, checkpoints_directory
from virnucpro.embed.step_log import StepRecord
from virnucpro.errors import InputError
from virnucpro.progress import Progress
from virnucpro.status.logs import SILENT_SECONDS
from virnucpro.status.run import run_status
from virnucpro.status.text import describe_status, progress_line


@pytest.fixture
def workdir(tmp_path):
    return Workdir(tmp_path / "run")


def status_of(workdir):
    return run_status(workdir.root, NOW)


def test_finished_run_is_done_and_nothing_is_unknown(workdir):
    status = status_of(workdir)
    (sample,) = status.samples
    assert (sample.name, sample.step, sample.state) == ("s1", "done", "done")
    assert status.shards == {"done": 4, "running": 0, "silent": 0, "failed": 0, "to do": 0}
    assert status.sequences == status.sequences_done == sum(map(len, workdir.members))
    assert status.tokens == status.tokens_done == sum(map(workdir.tokens, workdir.names))
    assert (status.seconds_left, status.last_error) == (0.0, None)
    assert (status.unknown, sample.unknown) == ([], [])


LOGS = {
    "no log": (None, "to do"),
    "a log that goes on": ("INFO    device: cpu\n", "running"),
    "an ending that is half written": ('INFO\n{"step": "embed", "stat', "running"),
    "failed": (end_line(status="failed", error="no memory", exit_status=1), "failed"),
    "interrupted": (end_line(status="interrupted", error="SIGTERM"), "to do"),
    "done, for another configuration": (end_line(status="done"), "to do"),
    "a wrong option": ("Usage: virnucpro embed\n\nError: No such option\n", "failed"),
    "another format number": ("error: --format: embeddings has format 9\n", "failed"),
    "a mistake of the program": ("Traceback (most recent call last):\nKeyError: 1\n", "failed"),
    "bytes that are no text": ("\ufffd\x00", "running"),
    "nothing yet": ("", "running"),
}


@pytest.mark.parametrize("case", LOGS)
def test_shard_without_results_is_what_its_log_says(case, workdir):
    text, state = LOGS[case]
    workdir.take_back("00001")
    if text is not None:
        workdir.log("embed/s1/00001.log", text)
    status = status_of(workdir)
    assert status.shards[state] == 1
    assert status.shards["done"] == 3
    assert (status.samples[0].step, status.samples[0].state) == ("embed", state)
    assert status.sequences_done == status.sequences - len(workdir.members[1])
    assert status.tokens_done == status.tokens - workdir.tokens("00001")
    assert (status.last_error is not None) == (state == "failed")


def test_job_that_says_nothing_for_long_is_not_called_under_way(workdir):
    workdir.take_back("00001")
    workdir.log("embed/s1/00001.log", "INFO\n", seconds_ago=SILENT_SECONDS + 1)
    status = status_of(workdir)
    assert status.shards["silent"] == 1
    assert "1 job(s) of s1 said nothing for long" in status.samples[0].unknown[-1]


def test_shard_under_way_gives_its_rate_and_tokens_by_its_log(workdir, caplog):
    workdir.take_back("00001")
    workdir.take_back("00002")
    total = workdir.tokens("00001")
    clock = iter([0.0, 31.0])
    with caplog.at_level(logging.INFO):
        Progress(total, what="shard 00001:", clock=lambda: next(clock)).step(total // 2)
    workdir.log("embed/s1/00001.log", f"2026-11-22 06:31:04 INFO    {caplog.messages[0]}\n")
    workdir.log("embed/s1/00002.log", "INFO    device: cpu\n")
    status = status_of(workdir)
    expected = status.tokens - total - workdir.tokens("00002") + total // 2
    assert status.tokens_done == pytest.approx(expected, abs=1)
    assert status.tokens_per_second.now == round(total // 2 / 31)
    assert status.seconds_left == round((status.tokens - status.tokens_done) / round(total / 62), 1)
    assert "go on as they do" in status.left_by
    assert status.unknown == ["1 job(s) under way have said no rate yet"]


def test_checkpoints_of_a_killed_job_count_and_damaged_ones_do_not(workdir):
    workdir.take_back("00001")
    directory = checkpoints_directory(workdir.embeddings / "00001.npy")
    checkpoints = Checkpoints(directory, {}, (1, 4), np.dtype("float32"))
    for number in range(2):
        step = StepRecord(number, [number], 11, 0.1, 0, 0, 0, [], "", [])
        with checkpoints.keep(SimpleNamespace(deleted=False), 64, 100) as take:
            take(step, np.zeros((1, 1, 4), np.float32))
    lost = status_of(workdir).tokens - workdir.tokens("00001")
    assert status_of(workdir).tokens_done == lost + 22
    first = min(directory.iterdir())
    first.write_bytes(first.read_bytes()[:80])
    assert status_of(workdir).tokens_done == lost + 11


def test_without_jobs_under_way_the_time_rests_on_what_was_achieved_or_planned(workdir):
    for shard in workdir.names[1:]:
        workdir.take_back(shard)
    status = status_of(workdir)
    assert status.tokens_per_second.achieved > 0
    assert "finished last" in status.left_by
    workdir.take_back("00000")
    status = status_of(workdir)
    assert (status.tokens_per_second.planned, status.tokens_per_second.device) == (
        *(PLANNED, "some GPU"),
    )
    assert status.seconds_left == round(status.tokens / PLANNED, 1)
    workdir.budget.unlink()
    status = status_of(workdir)
    assert (status.seconds_left, status.left_by) == (None, None)
    assert "not known" in describe_status(status)


DAMAGE = {
    "empty": lambda content: b"",
    "half": lambda content: content[: len(content) // 2],
    "binary": lambda content: b"\xff\x00\xfe" + content[::-1],
    "other JSON": lambda content: b"[1, {}]",
}
# What the status rests on, so that damage to it has to show.
READ = {"manifest.json", "00000.json", "00000.steps.tsv", "demo-d.json", "samples.tsv"}


@pytest.mark.parametrize("damage", DAMAGE)
def test_no_damaged_file_stops_the_status_and_none_passes_for_whole(damage, workdir):
    workdir.log("embed/s1/00001.log", end_line(status="done"))
    (workdir.root / "config" / "config.yaml").write_text("model: demo\n")
    before, passed = status_of(workdir), set()
    for path in sorted(path for path in workdir.root.rglob("*") if path.is_file()):
        content, times = path.read_bytes(), path.stat()
        for text in (DAMAGE[damage](content), content):
            path.write_bytes(text)
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
            status = status_of(workdir)
            assert describe_status(status)
            if text != content and status == before:
                passed.add(path.name)
    assert status == before
    assert not READ & passed


def test_damaged_files_are_named_among_what_is_not_known(workdir):
    for path in (workdir.embeddings / "00000.json", workdir.plans / "00001.json", workdir.budget):
        path.write_bytes(path.read_bytes()[:50])
    (workdir.embeddings / "00002.npy").unlink()
    (workdir.embeddings / "00003.steps.tsv").write_text("nonsense\n")
    status = status_of(workdir)
    said = "\n".join([*status.unknown, *status.samples[0].unknown])
    for name in ("c/00000.json", "b/00001.json", "demo-d.json", "00002.npy", "00003.steps.tsv"):
        assert name in said
    assert status.shards == {"done": 2, "running": 0, "silent": 0, "failed": 0, "to do": 2}


def test_damaged_split_leaves_its_sample_unknown(workdir):
    (workdir.split / "manifest.json").write_text("{")
    status = status_of(workdir)
    (sample,) = status.samples
    assert (sample.tokens, sample.shards, sample.step) == (None, {}, "split")
    assert "manifest.json" in sample.unknown[0]
    assert "not split yet" in status.unknown[0]
    assert status.seconds_left is None


def test_newest_folder_is_meant_and_that_is_said(workdir):
    earlier = workdir.embeddings.with_name("z")
    earlier.mkdir()
    set_time(earlier, 10_000_000)
    set_time(workdir.embeddings, 100)
    status = status_of(workdir)
    assert status.shards["done"] == 4
    assert "results/s1/embeddings has 2 folders" in status.samples[0].unknown[0]
    set_time(earlier, 50)
    assert status_of(workdir).shards["to do"] == 4


def test_results_older_than_a_shard_are_to_be_merged_again(workdir):
    set_time(workdir.h5ad, 600)
    (sample,) = status_of(workdir).samples
    assert (sample.step, sample.state) == ("merge", "to do")
    workdir.log("merge/s1.log", "INFO\n")
    (sample,) = status_of(workdir).samples
    assert (sample.step, sample.state) == ("merge", "running")


def test_samples_are_those_of_the_sheet_also_before_they_begin(workdir):
    (workdir.root / "config" / "config.yaml").write_text("samples: mine.csv\n")
    (workdir.root / "mine.csv").write_text("\ufeff# note\nFasta,Sample\nx.faa, new\ny.faa,s1\n")
    workdir.log("split/new/0123456789ab.log", "INFO\n")
    status = status_of(workdir)
    assert [(s.name, s.step, s.state) for s in status.samples] == [
        *[("new", "split", "running"), ("s1", "done", "done")],
    ]
    assert status.unknown == ["1 sample(s) not split yet: what they hold is not counted"]
    (workdir.root / "mine.csv").unlink()
    status = status_of(workdir)
    assert [sample.name for sample in status.samples] == ["s1"]
    assert "mine.csv cannot be read" in status.unknown[0]


FAILED = end_line(status="failed", error="it burns", exit_status=1)


def test_last_error_is_that_of_the_newest_log_with_its_file(workdir):
    workdir.take_back("00001")
    workdir.log("embed/s1/00001.log", FAILED, seconds_ago=60)
    workdir.log("token_budget.log", end_line(status="failed", error="older"), seconds_ago=90)
    error = status_of(workdir).last_error
    assert (error.error, error.log, error.seconds_ago) == (
        *("it burns", "logs/embed/s1/00001.log", 60.0),
    )


def test_errors_that_were_overcome_are_not_told(workdir):
    workdir.log("embed/s1/00001.log", FAILED)  # the shard is done
    workdir.log("embed/s1/00009-0123456789ab.log", FAILED)  # of a shard that is no more
    workdir.log("merge/s1.log", FAILED)  # the sample is finished
    workdir.log("fetch_model/demo-1.log", FAILED, seconds_ago=90)
    workdir.log("fetch_model/demo-1.log", end_line(status="done"), seconds_ago=20)
    assert status_of(workdir).last_error is None
    workdir.log("overview.log", FAILED)
    assert status_of(workdir).last_error.log == "logs/overview.log"


def test_text_has_shards_rates_time_and_the_last_error(workdir):
    workdir.take_back("00001")
    workdir.log("embed/s1/00001.log", FAILED, seconds_ago=600)
    text = describe_status(status_of(workdir))
    assert "  s1: embed failed; shards: 3 done, 1 failed; tokens: " in text
    assert "last error  it burns" in text
    assert "10 min ago, in logs/embed/s1/00001.log" in text
    line = progress_line(status_of(workdir))
    assert line.startswith("virnucpro: 0/1 samples, shards: 3 done, 1 failed, ")
    assert "\n" not in line


def test_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "results" / "other").mkdir(parents=True)
    with pytest.raises(InputError, match="no working directory"):
        run_status(tmp_path)


def test_command_ends_with_0_for_a_failed_run_and_2_for_another_folder(workdir, tmp_path):
    workdir.take_back("00001")
    workdir.log("embed/s1/00001.log", FAILED)

    def command(*arguments):
        line = [sys.executable, "-m", "virnucpro", "status", *map(str, arguments)]
        return subprocess.run(line, capture_output=True, text=True, cwd=tmp_path)

    done = command(workdir.root, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["shards"]["failed"] == 1
    for folder in (".", "not/there"):
        refused = command(folder)
        assert (refused.returncode, refused.stdout) == (2, "")
        assert "no working directory" in refused.stderr


def test_status_takes_the_folder_where_it_is_called(workdir, monkeypatch):
    monkeypatch.chdir(workdir.root)
    done = CliRunner().invoke(cli, ["status"])
    assert done.exit_code == 0
    assert "1 of 1 samples are done" in done.stdout


def test_status_needs_no_torch():
    code = "import sys, virnucpro.status.text; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
