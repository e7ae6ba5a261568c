"""Jobs and Snakemake itself are killed at random moments; the documented command continues."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.unit.embed.builders import random_proteins
from tests.workflow.snakemake_runs import ROOT, Sample, snakemake

pytestmark = pytest.mark.workflow

TARGET = "results/killed/embeddings.h5ad"
VICTIMS = ("job", "snakemake", "both", "job", "both")
NOTED_SECONDS = 2.0  # after which Snakemake, on a busy machine, has noted that a job is done


@pytest.fixture(scope="module")
def start(finished, tmp_path_factory):
    """Give a working directory in which the plans of a sample are made, and nothing after them."""
    workdir = tmp_path_factory.mktemp("kill") / "start"
    shutil.copytree(finished, workdir, symlinks=True)
    proteins = [letters.decode() for letters in random_proteins(180, longest=220)]
    fasta = "".join(f">k{number}\n{letters}\n" for number, letters in enumerate(proteins))
    (workdir / "data" / "killed.faa").write_text(fasta)
    (workdir / "config" / "samples.tsv").write_text("sample\tfasta\nkilled\tdata/killed.faa\n")
    config = workdir / "config" / "config.yaml"
    config.write_text(config.read_text().replace("shard_tokens: 1200", "shard_tokens: 15000"))
    run = snakemake(workdir, "results/killed/plan_report.tsv")
    assert run.status == 0, run.text
    return workdir


@pytest.fixture(scope="module")
def undisturbed(start, tmp_path_factory):
    """Give the working directory of a run to which nothing happened."""
    workdir = tmp_path_factory.mktemp("calm") / "run"
    shutil.copytree(start, workdir, symlinks=True)
    run = snakemake(workdir, TARGET)
    assert run.status == 0, run.text
    assert run.jobs["embed"] == 2
    return workdir


def begin(workdir: Path) -> subprocess.Popen[bytes]:
    """Start Snakemake, as a user would after a kill, and come back at once."""
    snakemake(workdir, "--unlock", TARGET)
    command = [
        str(Path(sys.executable).parent / "snakemake"),
        *("--snakefile", str(ROOT / "workflow" / "Snakefile")),
        *("--directory", str(workdir), "--cores", "2", TARGET),
    ]
    return subprocess.Popen(
        command,
        env={**os.environ, "PATH": "/usr/bin:/bin"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def embed_jobs(session: int) -> list[int]:
    """Give the `virnucpro embed` processes of a session; the shells around them are not meant."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
            own = int((process / "stat").read_text().rpartition(")")[2].split()[3]) == session
        except (OSError, ValueError):
            continue
        if own and b"embed" in words and b"-c" not in words[:2]:
            found.append(int(process.name))
    return found


def wait_for_job(running: subprocess.Popen[bytes]) -> list[int]:
    """Wait until a shard is being embedded; nothing where all is done before."""
    while running.poll() is None:
        if jobs := embed_jobs(running.pid):
            return jobs
        time.sleep(0.02)
    return []


def kill(processes: list[int]) -> None:
    for process in processes:
        try:
            os.kill(process, signal.SIGKILL)
        except ProcessLookupError:
            continue


def done_shards(workdir: Path) -> dict[Path, bytes]:
    """Give the step logs of the shards that were done some time ago."""
    receipts = (workdir / "results" / "killed" / "embeddings").glob("*/[0-9]*.json")
    old = [path for path in receipts if time.time() - path.stat().st_mtime > NOTED_SECONDS]
    step_logs = [path.with_name(f"{path.stem}.steps.tsv") for path in old]
    return {path: path.read_bytes() for path in step_logs if path.exists()}


def torment(workdir: Path, seed: int) -> dict[Path, bytes]:
    """Kill at random moments; gives the step logs of shards that were done before some kill."""
    rng = random.Random(seed)
    done: dict[Path, bytes] = {}
    running = None
    for victim in rng.sample(VICTIMS, len(VICTIMS)):
        if running is None or running.poll() is not None:
            running = begin(workdir)
        jobs = wait_for_job(running)
        time.sleep(rng.uniform(0, 4))
        done = {**done_shards(workdir), **done}
        if victim != "job":
            running.kill()  # the job goes on alone, while Snakemake is started again
            running.wait()
        if victim != "snakemake":
            kill(embed_jobs(running.pid) or jobs)
    if running is not None and running.poll() is None:
        running.kill()
        running.wait()
    return done


def check(workdir: Path, undisturbed: Path, seed: int) -> None:
    done = torment(workdir, seed)
    snakemake(workdir, "--unlock", TARGET)
    run = snakemake(workdir, TARGET)
    assert run.status == 0, run.text
    for name in ("embeddings.h5ad", "quarantine.tsv"):
        mine, calm = (folder / "results" / "killed" / name for folder in (workdir, undisturbed))
        assert mine.read_bytes() == calm.read_bytes(), name
    for step_log, content in done.items():
        assert step_log.read_bytes() == content, (
            f"{step_log.name}: a finished shard was computed again"
        )
    hidden = (workdir / "results" / "killed").rglob(".*")
    assert {path.name for path in hidden} <= {".snakemake_timestamp"}


@pytest.mark.fault(1, 13)
def test_five_kills_change_nothing(start, undisturbed, tmp_path):
    shutil.copytree(start, tmp_path / "run", symlinks=True)
    check(tmp_path / "run", undisturbed, seed=0)


@pytest.mark.long
@pytest.mark.fault(1, 13)
@pytest.mark.parametrize("seed", range(1, 11))
def test_fifty_kills_change_nothing(start, undisturbed, tmp_path, seed):
    shutil.copytree(start, tmp_path / "run", symlinks=True)
    check(tmp_path / "run", undisturbed, seed)


@pytest.mark.fault(3, 14)
def test_kill_while_merging_leaves_the_merged_file_of_before(undisturbed, tmp_path):
    """The command alone, for Snakemake removes a declared output before the job that makes it."""
    workdir = shutil.copytree(undisturbed, tmp_path / "run", symlinks=True)
    sample = Sample(workdir, "killed")
    results = sample.results
    whole = (results / "embeddings.h5ad").read_bytes()
    command = [
        *(sys.executable, "-m", "virnucpro", "merge", "--shards", sample.split / "shards"),
        *("--records", sample.split / "records.parquet", "--plans", sample.plans),
        *("--embeddings", sample.embeddings, "--output", results / "embeddings.h5ad"),
        *("--quarantine", results / "quarantine.tsv"),
        *("--request", next((results / "requests").glob("results-*.json"))),
    ]
    for sent, seconds in [(signal.SIGKILL, 0.7), (signal.SIGTERM, 1.0), (signal.SIGKILL, 1.2)]:
        running = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        time.sleep(seconds)
        running.send_signal(sent)
        assert running.wait() in (0, -signal.SIGKILL, 143)
        assert (results / "embeddings.h5ad").read_bytes() == whole
    assert subprocess.run(command, stderr=subprocess.DEVNULL).returncode == 0
    assert (results / "embeddings.h5ad").read_bytes() == whole
    assert [path.name for path in results.glob(".*")] == []
