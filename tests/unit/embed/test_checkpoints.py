"""A job that is killed in the middle of a shard comes to the same bytes from its checkpoints."""

import csv
import dataclasses
import os
import random
import shutil
import signal
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from tests.unit.embed.fast import CPU, DIM, bytes_of, fast, make_files
from virnucpro import cli
from virnucpro import files as files_module
from virnucpro.embed import checkpoints as checkpoints_module
from virnucpro.embed.checkpoints import checkpoints_directory
from virnucpro.embed.receipt import read_receipt
from virnucpro.embed.shard import embed_shard
from virnucpro.errors import DataError
from virnucpro.files import read_json

__all__ = ["fast"]

STEPS = 90  # at least, of the shard below


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(checkpoints_module, "_SECONDS", 0.0)


@pytest.fixture
def files(tmp_path, fast):
    return make_files(tmp_path / "shard")


@pytest.fixture
def undisturbed(files, tmp_path, fast):
    """The files of a run to which nothing happened."""
    calm = dataclasses.replace(
        files,
        embeddings=tmp_path / "calm" / "00000.npy",
        receipt=tmp_path / "calm" / "00000.json",
        step_log=tmp_path / "calm" / "00000.steps.tsv",
    )
    embed_shard(calm, CPU)
    assert fast.launched > STEPS
    fast.launched = 0
    return calm


class StopError(Exception):
    """What ends a run in the middle."""


def stop_at(number):
    def before(launched):
        if launched == number:
            raise StopError

    return staticmethod(before)


def stop_run(files, fast, number, options=CPU):
    """Run until a step is launched; gives how many checkpoints are left."""
    fast.before = stop_at(number)
    with pytest.raises(StopError):
        embed_shard(files, options)
    fast.before = staticmethod(lambda _number: None)
    fast.launched = 0
    return sorted(checkpoints_directory(files.embeddings).glob("*"))


def read_step_log(files):
    with files.step_log.open(newline="") as handle:
        return list(csv.DictReader(handle, delimiter="\t"))


def assert_same(files, undisturbed):
    assert bytes_of(files) == bytes_of(undisturbed)
    step_log, calm = read_step_log(files), read_step_log(undisturbed)
    untimed = ("step", "items", "tokens", "note")
    assert [[line[name] for name in untimed] for line in step_log] == [
        [line[name] for name in untimed] for line in calm
    ]
    assert sorted(os.listdir(files.receipt.parent)) == [
        "00000.json",
        "00000.npy",
        "00000.steps.tsv",
    ]


@pytest.mark.fault(1, 14)
@pytest.mark.parametrize("number", [1, 2, 50, STEPS])
def test_a_run_that_ended_in_the_middle_continues_with_the_step_after(
    files, undisturbed, fast, number
):
    stop_run(files, fast, number)
    assert not files.embeddings.exists()
    embed_shard(files, CPU)
    steps = read_receipt(files.receipt).steps
    # the step under way when the run ended had been launched, and its result was not fetched
    assert fast.launched == steps - max(number - 1, 0)
    assert_same(files, undisturbed)


@pytest.mark.fault(1)
def test_quarantined_rows_retries_and_recomputed_rows_survive(files, undisturbed, fast):
    receipt = read_receipt(undisturbed.receipt)
    assert len(receipt.quarantined) > 1
    assert receipt.retries > 1
    stop_run(files, fast, STEPS)
    assert embed_shard(files, CPU) == receipt


@pytest.mark.fault(1)
@pytest.mark.parametrize("number", [3, 17, 40])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_windows_and_scores_continue_too(tmp_path, fast, number, dtype):
    """Some sequences have windows in the steps before the end and in those after it."""
    wanted = dataclasses.replace(CPU, pseudo_perplexity="one-pass", output_dtype=dtype)
    windows = {"longest": 600, "long_sequences": "window", "window_overlap": 30}
    calm = make_files(tmp_path / "calm", 60, **windows)
    receipt = embed_shard(calm, wanted)
    assert receipt.steps > 45
    fast.launched = 0
    files = make_files(tmp_path / "shard", 60, **windows)
    assert stop_run(files, fast, number, wanted)
    embed_shard(files, wanted)
    assert fast.launched == receipt.steps - number + 1
    assert bytes_of(files) == bytes_of(calm)
    scores = [one.extras["pseudo_perplexity"].read_bytes() for one in (files, calm)]
    assert scores[0] == scores[1]


@pytest.mark.fault(14)
def test_a_run_that_keeps_residues_starts_anew(tmp_path, fast):
    """Its checkpoints would be a copy of all of them: small shards take their place."""
    files, wanted = make_files(tmp_path / "shard"), dataclasses.replace(CPU, pooling="none")
    assert stop_run(files, fast, 50, wanted) == []
    receipt = embed_shard(files, wanted)
    assert fast.launched == receipt.steps


class AtOnce(ThreadPoolExecutor):
    """Does in `submit` what a thread would do soon, so that a busy machine changes nothing."""

    def submit(self, work, *arguments):
        done = Future()
        done.set_result(work(*arguments))
        return done


def steps_computed_twice(files, fast, share):
    """Kill a run with a share of its steps done, and continue; gives those done twice, and all."""
    total = read_json(files.plan.with_suffix(".json"))["batches"]
    kill_at = int(share * total)

    def before(launched):
        if launched == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if not child:
        try:
            fast.before = staticmethod(before)
            embed_shard(files, CPU)
        finally:  # an error must not go on as a second run of all tests
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert not files.embeddings.exists()
    files_module._sweep.cache_clear()  # the test's process has seen this folder, a new one has not
    fast.seconds = 0.0
    embed_shard(files, CPU)
    # neither the killed run's temporary array nor its checkpoints are left
    assert len(os.listdir(files.receipt.parent)) == 3
    return kill_at + fast.launched - total, total


@pytest.mark.fault(1)
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_kill_costs_at_most_two_percent_of_the_shard(tmp_path, fast, share, monkeypatch):
    monkeypatch.setattr(checkpoints_module, "ThreadPoolExecutor", AtOnce)
    files = make_files(tmp_path / "shard", count=1000)
    twice, total = steps_computed_twice(files, fast, share)
    assert 0 <= twice <= 0.02 * total, f"{twice} of {total} steps were computed twice"


@pytest.mark.long
@pytest.mark.fault(1)
@pytest.mark.parametrize("share", [0.31, 0.5, 0.9])
def test_kill_costs_at_most_two_percent_with_the_thread_and_its_pauses(
    tmp_path, fast, share, monkeypatch
):
    """A shard of 100 s, as long as a shard of 650M takes on a GPU at the least."""
    monkeypatch.setattr(checkpoints_module, "_SECONDS", 1.0)
    files = make_files(tmp_path / "shard", count=3000)
    fast.seconds = 100 / read_json(files.plan.with_suffix(".json"))["batches"]
    twice, total = steps_computed_twice(files, fast, share)
    assert 0 <= twice <= 0.02 * total, f"{twice} of {total} steps were computed twice"
    print(f"{twice} of {total} steps twice")


@pytest.mark.fault(14)
def test_sigterm_ends_within_a_step_with_143_and_loses_nothing(files, undisturbed, fast):
    def before(launched):
        if launched == 50:
            os.kill(os.getpid(), signal.SIGTERM)
        assert launched <= 50

    child = os.fork()
    if not child:
        try:
            signal.signal(signal.SIGTERM, cli._terminate)
            fast.before = staticmethod(before)
            embed_shard(files, CPU)
        except SystemExit as end:
            os._exit(end.code)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 143
    assert os.listdir(files.receipt.parent) == [".00000.checkpoints"]
    embed_shard(files, CPU)
    # the step under way and the one that was about to start
    assert fast.launched == read_receipt(files.receipt).steps - 49
    assert_same(files, undisturbed)


@pytest.mark.fault(7, 8)
@pytest.mark.parametrize("seed", range(6))
def test_damaged_checkpoint_is_named_and_only_its_steps_are_computed_again(
    files, undisturbed, fast, seed, caplog
):
    found = stop_run(files, fast, STEPS)
    rng = random.Random(seed)
    checkpoint = rng.choice(found)
    content = bytearray(checkpoint.read_bytes())
    place = rng.randrange(len(content))
    if seed % 2:
        content[place] ^= 1 << rng.randrange(8)
    else:
        del content[place:]
    checkpoint.write_bytes(content)
    steps = 1 + int(checkpoint.stem[9:]) - int(checkpoint.stem[:8])
    embed_shard(files, CPU)
    assert str(checkpoint) in caplog.text
    assert fast.launched == read_receipt(files.receipt).steps - (STEPS - 1) + steps
    assert_same(files, undisturbed)


@pytest.mark.fault(9)
@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"output_dtype": "float16"}, "dtype"),
        ({"layers": (1, -1)}, "requested_layers"),
        ({"dtype": "bfloat16"}, "compute_dtype"),
    ],
)
def test_checkpoints_of_another_request_are_not_used(files, fast, change, named, caplog):
    stop_run(files, fast, STEPS)
    receipt = embed_shard(files, dataclasses.replace(CPU, **change))
    assert f"made with another {named}" in caplog.text
    assert fast.launched == receipt.steps


@pytest.mark.fault(9)
def test_checkpoints_of_another_plan_are_not_used(files, fast, caplog):
    stop_run(files, fast, STEPS)
    make_files(files.shard.parent, count=280)
    receipt = embed_shard(files, CPU)
    assert "made with another plan_hash" in caplog.text
    assert fast.launched == receipt.steps


@pytest.mark.fault(9)
def test_checkpoint_with_the_rows_of_other_steps_is_not_used(files, undisturbed, fast, monkeypatch):
    """As one would be that another version of the packing code had written."""
    honest = checkpoints_module.asdict

    def shifted(step):
        return honest(step) | {"number": step.number + 1}

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints_module, "asdict", shifted)
        stop_run(files, fast, STEPS)
    embed_shard(files, CPU)
    assert fast.launched == read_receipt(files.receipt).steps
    assert_same(files, undisturbed)


@pytest.mark.fault(14)
def test_lower_limit_of_a_retry_does_not_cost_the_checkpoints(files, undisturbed, fast, caplog):
    """Snakemake halves the token budget at each retry, whatever ended the attempt before."""
    stop_run(files, fast, STEPS)
    receipt = embed_shard(files, dataclasses.replace(CPU, token_budget=130))
    assert receipt.tokens_per_step == 256
    assert_same(files, undisturbed)


@pytest.mark.fault(1)
def test_run_may_be_ended_again_and_again(files, undisturbed, fast):
    for number in (30, 20, 10, 5, 1):
        stop_run(files, fast, number)
    embed_shard(files, CPU)
    assert_same(files, undisturbed)


@pytest.mark.fault(5)
def test_checkpoints_that_cannot_be_written_cost_the_run_nothing(
    files, undisturbed, fast, monkeypatch, caplog
):
    def full(*_arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints_module, "write_bytes", full)
    embed_shard(files, CPU)
    assert "a checkpoint is not kept" in caplog.text
    assert bytes_of(files) == bytes_of(undisturbed)


@pytest.mark.fault(41)
def test_deleted_folder_ends_the_run_early(files, fast):
    def before(launched):
        if launched == 10:
            shutil.rmtree(files.embeddings.parent, ignore_errors=True)

    fast.before = staticmethod(before)
    with pytest.raises(DataError, match="deleted meanwhile"):
        embed_shard(files, CPU)
    assert fast.launched < 20


@pytest.mark.fault(13)
@pytest.mark.parametrize("budget", [None, 130])
def test_first_of_two_jobs_of_one_shard_stays(
    files, undisturbed, fast, budget, caplog, monkeypatch
):
    """A requeued job ends while the old one still computes; the old one ends later."""
    monkeypatch.setattr(checkpoints_module, "_SECONDS", 3600.0)  # the two see nothing of each other
    bytes_then = []

    def before(launched):
        if launched == STEPS:
            fast.before = staticmethod(lambda _number: None)
            embed_shard(files, dataclasses.replace(CPU, token_budget=budget))
            bytes_then.extend(bytes_of(files))

    fast.before = staticmethod(before)
    caplog.set_level("INFO")
    receipt = embed_shard(files, CPU)
    assert list(bytes_of(files)) == bytes_then
    assert receipt == read_receipt(files.receipt)
    assert "its result stays" in caplog.text
    assert ("has other bits" in caplog.text) == (budget is not None)
    assert len(os.listdir(files.receipt.parent)) == 3


def test_rows_of_a_checkpoint_have_the_shape_of_the_array(files, fast):
    found = stop_run(files, fast, STEPS)
    with found[0].open("rb") as handle:
        assert len(handle.readline()) == 65
        handle.readline()
        assert len(handle.read()) % (4 * DIM) == 0
