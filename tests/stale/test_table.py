"""The same command never says that it is done over results of another input or configuration.

A cell of the table: a finished run, a change, a run that a fault ends at some step, perhaps a lost
`.snakemake` folder, and the same command again. It has to come to what a fresh folder comes to, or
to fail again, and to embed nothing twice. Commands are stand-ins that take milliseconds
(`stand_in.py`); Snakemake and the workflow are real.

`make test` runs a sample of the cells, `make test-stale` all of them.
"""

from __future__ import annotations

import hashlib
import itertools
import random
import shutil
import signal
from collections import Counter
from pathlib import Path

import pytest

from tests.stale.changes import CHANGES, change, refuse
from tests.stale.folders import Folder, make_folder, own_workflow

pytestmark = pytest.mark.workflow

ENDS = ("exit 1", "exit 2", "SIGTERM", "SIGINT", "SIGKILL")
STEPS = ("model", "budget", "genes", "split", "plan", "embed", "withdraw", "merge", "report")
MOMENTS = ("before", "middle", "after")
SAMPLES, SHARDS = (1, 2), (1, 4)
TABLE = list(itertools.product(CHANGES, STEPS, ENDS, SAMPLES, SHARDS))
SHORT = 24  # cells that `make test` runs
SIGNALS = {"SIGTERM", "SIGINT", "SIGKILL"}


def number(cell: object) -> int:
    """Return a number that looks random and is the same in each run."""
    return int(hashlib.sha256(repr(cell).encode()).hexdigest(), 16)


def some_cells() -> list[tuple]:
    """Return cells such that each change, each step and each end is among them several times."""
    return sorted(TABLE, key=number)[:SHORT]


@pytest.fixture(scope="module")
def snakefile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return own_workflow(tmp_path_factory.mktemp("stale"))


@pytest.fixture(scope="module")
def finished(snakefile, tmp_path_factory):
    """Give a function that returns a finished folder of so many samples and shards."""
    made: dict[tuple[int, int], Folder] = {}

    def get(samples: int, shards: int) -> Folder:
        if (samples, shards) not in made:
            path = tmp_path_factory.mktemp("finished") / "run"
            folder = make_folder(path, snakefile, samples=samples, shards=shards)
            run = folder.run()
            assert run.status == 0, run.text
            made[samples, shards] = folder
        return made[samples, shards]

    return get


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """Give a function that returns the results of a fresh folder with the same input."""
    known: dict[tuple, dict[str, str]] = {}

    def get(folder: Folder, key: tuple) -> dict[str, str]:
        if key not in known:
            fresh = folder.fresh(tmp_path_factory.mktemp("fresh") / "run")
            run = fresh.run()
            assert run.status == 0, run.text
            known[key] = fresh.results()
            shutil.rmtree(fresh.path)
        return known[key]

    return get


def check(cell: tuple, finished, expected, tmp_path: Path) -> None:
    """Go through one cell."""
    name, step, end, samples, shards = cell
    folder = finished(samples, shards).copy(tmp_path / "run")
    change(folder, name)
    moment = MOMENTS[number(cell) % 3]
    ended = folder.run(fault=f"{step}:{end}:{moment}", once=end in SIGNALS)
    met = folder.calls("ended")
    assert (ended.status != 0) == bool(met), ended.text
    if end == "exit 2":
        assert not met or "Trying to restart job" not in ended.text
    if number(cell) // 3 % 2:
        shutil.rmtree(folder.path / ".snakemake")
    elif ended.status == -signal.SIGKILL:
        folder.run("--unlock")
    again = folder.run()
    assert again.status == 0, again.text
    assert folder.results() == expected(folder, (name, samples, shards))
    # What the fault ended may have to be computed once more, but nothing else.
    embedded = Counter(identity for _, identity in folder.calls("embeds"))
    excess = sum(embedded.values()) - len(embedded)
    assert excess <= (len(met) if step == "embed" else 0), embedded
    last = folder.run()
    assert not last.jobs, last.text
    assert "Nothing to be done" in last.text


@pytest.mark.fault(45, 46)
@pytest.mark.parametrize("cell", some_cells(), ids=lambda cell: "-".join(map(str, cell)))
def test_cell(cell, finished, expected, tmp_path):
    check(cell, finished, expected, tmp_path)


@pytest.mark.long
@pytest.mark.fault(45, 46)
@pytest.mark.parametrize("cell", TABLE, ids=lambda cell: "-".join(map(str, cell)))
def test_every_cell(cell, finished, expected, tmp_path):
    check(cell, finished, expected, tmp_path)


WALKS = [
    *(pytest.param(seed, id=str(seed)) for seed in range(2)),
    *(pytest.param(seed, id=str(seed), marks=pytest.mark.long) for seed in range(2, 60)),
]


@pytest.mark.fault(45, 46)
@pytest.mark.parametrize("seed", WALKS)
def test_walk(seed, finished, expected, tmp_path):
    """Change, run, and end it at some moment in some way, three times; then run to the end."""
    rng = random.Random(seed)
    folder = finished(2, rng.choice(SHARDS)).copy(tmp_path / "run")
    for _ in range(3):
        for name in rng.sample(sorted(CHANGES), rng.choice([1, 2])):
            if name != "input_replaced" or (folder.path / "data" / "c1.faa").exists():
                change(folder, name)
        folder.run_for(rng.uniform(1.0, 7.0), signal.Signals[rng.choice(sorted(SIGNALS))])
        if rng.random() < 0.4:
            shutil.rmtree(folder.path / ".snakemake", ignore_errors=True)
    folder.run("--unlock")
    run = folder.run()
    assert run.status == 0, run.text
    assert folder.results() == expected(folder, ("walk", seed))
    assert "Nothing to be done" in folder.run().text


@pytest.mark.fault(46)
def test_results_laid_over_those_that_are_there_are_made_again(finished, expected, tmp_path):
    folder = finished(2, 1).copy(tmp_path / "run")
    other = finished(2, 1).copy(tmp_path / "other")
    change(other, "sheet_with_another_sample")
    assert other.run().status == 0
    shutil.copytree(other.path / "results", folder.path / "results", dirs_exist_ok=True)
    run = folder.run()
    assert run.status == 0, run.text
    assert "embed" not in run.jobs
    assert folder.results() == expected(folder, ("as it was", 2, 1))
    assert "Nothing to be done" in folder.run().text


@pytest.mark.parametrize("lost", [False, True])
def test_refused_input_fails_again_and_again_and_the_others_finish(
    lost, finished, expected, tmp_path
):
    folder = finished(2, 1).copy(tmp_path / "run")
    change(folder, "layers")
    sound = (folder.path / "data" / "a1.faa").read_text()
    refuse(folder)
    for _ in range(2):
        run = folder.run()
        assert run.status == 1, run.text
        assert run.jobs["split"] == 1  # exit 2 is not retried
        if lost:
            shutil.rmtree(folder.path / ".snakemake")
    done = expected(finished_change(folder, sound, tmp_path), ("layers", 2, 1))
    assert {k: v for k, v in folder.results().items() if "/b/" in k} == {
        k: v for k, v in done.items() if "/b/" in k
    }


def finished_change(folder: Folder, text: str, tmp_path: Path) -> Folder:
    """Return a folder with the input as it was before it was spoilt."""
    sound = folder.fresh(tmp_path / "sound")
    (sound.path / "data" / "a1.faa").write_text(text)
    return sound
