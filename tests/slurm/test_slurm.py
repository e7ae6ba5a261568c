"""The shipped SLURM profiles on a real SLURM: `make test-slurm`.

A small run of several shards goes through each profile. In the first, a running job is cancelled,
and the node loses its power once; in the second, Snakemake itself is killed and started again. Both
must end complete, with the bytes of a run without SLURM.
"""

import filecmp
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.slurm.cluster import INSTALLED, Cluster, missing_programs, slurm, wait_for
from tests.workflow.snakemake_runs import ROOT, snakemake

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(1200)]

CONFIG = """\
model: demo
split: {shard_tokens: 12000}
"""
# What only this SLURM needs: no accounting database, quick answers.
IMAGINARY = [
    "--slurm-no-account",
    *("--slurm-status-command", "squeue"),
    *("--slurm-init-seconds-before-status-checks", "3"),
    *("--seconds-between-status-checks", "2"),
]
GPU_OF_LOG = re.compile(r"GPU: (\S+), waited")


@pytest.fixture(scope="module")
def cluster():
    """Give a SLURM of one node with two imaginary GPUs."""
    if os.geteuid() != 0:
        pytest.skip("needs root: SLURM's daemons and device files")
    if found := [str(path) for path in INSTALLED if path.exists()]:
        pytest.skip(f"this machine has a SLURM of its own: {', '.join(found)}")
    if missing := missing_programs():
        pytest.fail(f"not installed: {', '.join(missing)}; make test-slurm installs them")
    # Not pytest's folder: munge refuses a socket below one that others can't enter.
    folder = Path(tempfile.mkdtemp(prefix="virnucpro-slurm-"))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends the daemons too
    try:
        with slurm(folder) as running:
            yield running
    finally:
        shutil.rmtree(folder)


def new_run(folder: Path) -> Path:
    """Make a working directory for the example's proteins."""
    (folder / "config").mkdir(parents=True)
    (folder / "config" / "config.yaml").write_text(CONFIG)
    (folder / "config" / "samples.tsv").write_text(f"sample\tfasta\nphage\t{EXAMPLE}\n")
    return folder


EXAMPLE = next((ROOT / "example").rglob("*.f*a*"))


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """Give the working directory of a finished run without SLURM."""
    workdir = new_run(tmp_path_factory.mktemp("local") / "run")
    run = snakemake(workdir, "--cores", "4")  # the rule's threads, which decide a sum's last bits
    assert run.status == 0, run.text
    return workdir


@pytest.fixture
def start(cluster, tmp_path):
    """Give a function that starts the workflow through a profile: its folder, its process."""
    running = []

    workdir = new_run(tmp_path / "run")

    def start(profile: str, *options: str) -> tuple[Path, subprocess.Popen]:
        process = subprocess.Popen(
            [
                str(Path(sys.executable).parent / "snakemake"),
                *("--snakefile", str(ROOT / "workflow" / "Snakefile")),
                *("--directory", str(workdir)),
                *("--workflow-profile", str(ROOT / "workflow" / "profiles" / profile)),
                *(*IMAGINARY, *options),
            ],
            cwd=tmp_path,
            env={**os.environ, "VIRNUCPRO_LOCK_DIR": str(cluster.folder)},
            stdout=(tmp_path / "snakemake.log").open("a"),
            stderr=subprocess.STDOUT,
        )
        running.append(process)
        return workdir, process

    yield start
    for process in running:
        if process.poll() is None:
            process.kill()
            process.wait()
    print((tmp_path / "snakemake.log").read_text()[-20_000:])
    for job in cluster.jobs():
        cluster.run("scancel", job.number)


def finish(process: subprocess.Popen, cluster: Cluster) -> int:
    """Wait for the end of the workflow; give the most GPU jobs that ran at a time."""
    most = 0

    def ended() -> bool:
        nonlocal most
        most = max(most, len(cluster.running("embed")))
        return process.poll() is not None

    wait_for("the workflow", ended, 900)
    return most


def assert_same_results(workdir: Path, local: Path) -> None:
    """Compare all that must not depend on where it was computed, byte for byte."""
    names = [
        str(path.relative_to(local))
        for pattern in ("embeddings/*/*.npy", "embeddings/*/*.json", "embeddings.h5ad", "*.tsv")
        for path in sorted((local / "results" / "phage").glob(pattern))
        if path.name != "packing_report.tsv"  # holds seconds
    ]
    assert len(names) >= 10
    same, different, missing = filecmp.cmpfiles(local, workdir, names, shallow=False)
    assert (different, missing) == ([], [])
    assert same == names


def assert_one_gpu_a_job(workdir: Path) -> None:
    """Every embed job saw one of the two GPUs, and both were used."""
    logs = sorted((workdir / "logs" / "embed" / "phage").glob("*.log"))
    devices = [GPU_OF_LOG.search(log.read_text())[1] for log in logs]
    assert set(devices) == {"0", "1"}


def assert_plans_were_one_job(workdir: Path) -> None:
    """All shards were planned in one job of SLURM."""
    log = (workdir.parent / "snakemake.log").read_text()
    assert len(set(re.findall(r"slurm_logs/group_\S+/(\d+)\.log", log))) == 1
    assert "slurm_logs/rule_plan/" not in log


def test_slurm_with_a_cancelled_job_and_a_power_cut(cluster, start, local):
    workdir, process = start("slurm")
    (victim, *_) = wait_for("an embed job", lambda: cluster.running("embed"), 300)
    assert "gpu:1" in victim.gpus
    cluster.run("scancel", victim.number)
    wait_for("its end", lambda: victim.number not in [job.number for job in cluster.jobs()])
    wait_for("another embed job", lambda: cluster.running("embed"), 120)
    cluster.power_cut()
    wait_for("the node to be missed", lambda: "down" in cluster.node_state())
    cluster.start_node()
    wait_for("the node to be back", lambda: "down" not in cluster.node_state())
    cluster.hurry()
    most = finish(process, cluster)
    assert process.returncode == 0
    assert most == 2
    assert_same_results(workdir, local)
    assert_one_gpu_a_job(workdir)
    assert_plans_were_one_job(workdir)


def test_slurm_gres_with_snakemake_killed(cluster, start, local):
    workdir, process = start("slurm-gres")
    (job, *_) = wait_for("an embed job", lambda: cluster.running("embed"), 300)
    assert "gpu:1" in job.gres
    assert "gpu" not in job.gpus
    process.kill()
    process.wait()
    _, unlock = start("slurm-gres", "--unlock")
    assert unlock.wait() == 0
    workdir, process = start("slurm-gres")
    most = finish(process, cluster)
    assert process.returncode == 0
    assert most == 2
    assert_same_results(workdir, local)
    assert_one_gpu_a_job(workdir)
