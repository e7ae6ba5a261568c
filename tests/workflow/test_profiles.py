"""The shipped profiles: what each says, and that Snakemake takes it. SLURM itself: tests/slurm."""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.workflow.snakemake_runs import ROOT, Sample, measured_budget, snakemake

yaml = pytest.importorskip("yaml")

pytestmark = pytest.mark.workflow

PROFILES = {path.parent.name: path for path in (ROOT / "workflow/profiles").glob("*/profile.yaml")}
# The script is the last word; a job's number is that of its process, which runs on its own.
QSUB = """#!/bin/sh
for script; do :; done
echo "$@" >> {folder}/asked
setsid sh -c "sh $script > /dev/null 2>&1; echo $? > {folder}/$$.status" > /dev/null 2>&1 &
echo $$
"""
QSTAT = """#!/bin/sh
for number; do :; done
if [ -e {folder}/$number.status ]; then
  echo "    job_state = F"
  echo "    Exit_status = $(cat {folder}/$number.status)"
else
  echo "    job_state = R"
fi
"""


def read(name):
    return yaml.safe_load(PROFILES[name].read_text())


def test_all_profiles_are_here():
    assert set(PROFILES) == {"default", "slurm", "slurm-gres", "cluster-generic", "workstation"}


@pytest.mark.parametrize("name", sorted(PROFILES))
def test_every_entry_has_its_comment(name):
    lines = PROFILES[name].read_text().splitlines()
    entries = [number for number, line in enumerate(lines) if re.match(r"[a-z]", line)]
    assert len(entries) >= 4
    assert [lines[number] for number in entries if not lines[number - 1].startswith("#")] == []


@pytest.mark.parametrize("name", sorted(PROFILES))
def test_every_profile_continues_after_a_kill_and_a_failure_and_trusts_names(name):
    profile = read(name)
    assert profile["rerun-incomplete"] is True
    assert profile["keep-going"] is True
    assert profile["rerun-triggers"] == ["mtime", "input"]


@pytest.mark.parametrize("name", ["slurm", "slurm-gres", "cluster-generic"])
def test_a_cluster_has_no_limit_of_gpus_for_all_jobs_together(name):
    profile = read(name)
    assert profile["set-resource-scopes"] == {"gpu": "local"}
    assert "resources" not in profile
    assert profile["retries"] >= 2


def test_slurm_gres_differs_only_in_how_it_asks_for_gpus():
    gres = read("slurm-gres")
    assert set(gres.pop("set-resources")) == {"embed", "token_budget"}
    assert gres == read("slurm")


def test_cluster_generic_submits_every_job_with_what_it_needs(fresh, tmp_path):
    # Several shards, for plans go into groups, in which a resource that is text must not differ.
    sheet = f"sample\tfasta\na\t{ROOT / 'example' / 'phage_lambda.faa'}\n"
    workdir = fresh(sheet, "model: demo\nsplit: {shard_tokens: 12000}\n")
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in (("qsub", QSUB), ("qstat", QSTAT)):
        (programs / name).write_text(text.replace("{folder}", str(tmp_path)))
        (programs / name).chmod(0o755)
    done = subprocess.run(
        [
            str(Path(sys.executable).parent / "snakemake"),
            *("results/a/plan_report.tsv", "--until", "plan_report", "token_budget"),
            *("--snakefile", str(ROOT / "workflow" / "Snakefile"), "--directory", str(workdir)),
            *("--workflow-profile", str(PROFILES["cluster-generic"].parent)),
            *("--seconds-between-status-checks", "1"),
        ],
        cwd=workdir,
        env={
            **os.environ,
            "PATH": f"{programs}:/usr/bin:/bin",
            "VIRNUCPRO_LOCK_DIR": str(tmp_path),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout
    asked = {re.search(r"-N (\w+)", line)[1]: line for line in (tmp_path / "asked").open()}
    assert set(asked) == {"split", "GROUP", "plan_report", "token_budget"}  # plans go in groups
    assert "ncpus=4:mem=" in asked["token_budget"]
    assert "ngpus=1 -l walltime=1800" in asked["token_budget"]
    assert re.search(r"ncpus=4:mem=4\d{3}mb:ngpus=0", asked["GROUP"])  # four at a time
    assert len(list(workdir.glob("results/a/plan/*/*.parquet"))) > 1


def test_a_shard_asks_for_memory_and_time_by_its_size(finished):
    rate = json.loads(measured_budget(finished).read_text())
    (weights,) = (finished / "resources/models").glob("demo-*.safetensors")
    weights = weights.stat().st_size / 1e6
    run = snakemake(finished, "--dry-run", "--forcerun", "embed")
    jobs = [block.partition("\n\n")[0] for block in run.text.split("rule embed:\n")[1:]]
    assert len(jobs) > 2, run.text
    for job in jobs:
        asked = dict(re.findall(r"(sample|shard|mem_mb|runtime)=([\w-]+)(?=[,\n])", job))
        plan_report = Sample(finished, asked["sample"]).plans / f"{asked['shard']}.json"
        plan = json.loads(plan_report.read_text())
        tokens = plan["batches"] * plan["token_budget"]
        minutes = math.ceil(15 + 3 * tokens / rate["tokens_per_second"] / 60)
        assert int(asked["runtime"]) == minutes
        assert 6000 + 2 * weights <= int(asked["mem_mb"]) <= 6000 + 2 * weights + 100
