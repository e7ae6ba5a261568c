"""The step `plan`: files, cache and report."""

import json
import logging

import numpy as np
import pytest

from virnucpro.errors import DataError, InputError
from virnucpro.formats import PLAN_FORMAT
from virnucpro.plan import build
from virnucpro.plan.baselines import unsorted_padding_tokens
from virnucpro.plan.build import plan_shard
from virnucpro.plan.parameters import PlanParameters
from virnucpro.plan.plan import read_plan
from virnucpro.plan.report import length_histogram
from virnucpro.sequences.shards import read_shard, write_shard

OPTIONS = {"token_budget": 200, "max_sequence_length": 100, "long_sequences": "truncate"}


@pytest.fixture
def shard(tmp_path):
    rng = np.random.default_rng(0)
    letters = np.frombuffer(b"LAGVSERTIDPKQNFYMHWC", np.uint8)
    path = tmp_path / "00007.fasta"
    write_shard(path, [rng.choice(letters, size).tobytes() for size in rng.integers(5, 120, 80)])
    return path


@pytest.fixture
def run(tmp_path, shard):
    def run(name="a", **changes):
        folder = tmp_path / name
        cache_dir = changes.pop("cache_dir", tmp_path / "cache")
        report = plan_shard(
            shard,
            folder / "plan.parquet",
            folder / "plan.json",
            PlanParameters(**{**OPTIONS, **changes}),
            cache_dir=cache_dir,
        )
        return (
            report.packing,
            (folder / "plan.parquet").read_bytes(),
            (folder / "plan.json").read_bytes(),
        )

    return run


def test_the_file_holds_the_plan_of_the_shard(run, shard, tmp_path):
    plan, _, _ = run()
    read = read_plan(tmp_path / "a" / "plan.parquet")
    assert read.content_hash == plan.content_hash
    sequences = read_shard(shard)
    assert [key.tobytes().hex() for key in read.keys] == [sequences.keys[i] for i in read.row]
    assert sorted(read.row.tolist()) == list(range(80))


def test_the_second_run_takes_the_plan_from_the_cache_with_the_same_bytes(run, caplog):
    with caplog.at_level(logging.INFO):
        first, second = run("a"), run("b")
    messages = [text for text in caplog.messages if "plan cache" in text]
    assert [text.rsplit(" ", 1)[0] for text in messages] == ["plan cache miss", "plan cache hit"]
    assert messages[0].rsplit(" ", 1)[1] == messages[1].rsplit(" ", 1)[1]
    assert first[1:] == second[1:]


def test_a_hit_plans_nothing(run, monkeypatch):
    first = run("a")
    monkeypatch.setattr(build, "make_plan", None)
    assert run("b")[1:] == first[1:]


def test_a_run_with_and_one_without_a_cache_write_the_same(run, caplog):
    run("a")
    caplog.clear()
    with caplog.at_level(logging.INFO):
        without = run("c", cache_dir=None)
    assert "plan cache" not in caplog.text
    assert without[1:] == run("b")[1:]


def test_another_parameter_is_another_plan(run, caplog):
    run("a")
    caplog.clear()
    with caplog.at_level(logging.INFO):
        run("b", token_budget=300)
    assert "plan cache miss" in caplog.text


@pytest.mark.fault(10)
def test_the_same_path_with_other_sequences_is_another_plan(run, shard, caplog):
    before, _, _ = run("a")
    write_shard(shard, read_shard(shard).residues[1:])
    caplog.clear()
    with caplog.at_level(logging.INFO):
        after, _, _ = run("a")
    assert "plan cache miss" in caplog.text
    assert (before.items, after.items) == (80, 79)


def test_the_report_counts_what_the_plan_holds(run, shard):
    plan, _, content = run()
    report = json.loads(content)
    assert report.pop("seal").startswith("sha256 of the rest: ")
    lengths = np.array([len(residues) for residues in read_shard(shard).residues])
    cut = np.minimum(lengths, 100)
    alternatives = report.pop("alternatives")
    histogram = report.pop("length_histogram")
    tokens = int(cut.sum()) + 2 * 80
    assert report == {
        "format": PLAN_FORMAT,
        "shard": "00007",
        "token_budget": 200,
        "max_sequence_length": 100,
        "long_sequences": "truncate",
        "window_overlap": 0,
        "algorithm": "first-fit-decreasing",
        "content_hash": plan.content_hash,
        "sequences": 80,
        "items": 80,
        "tokens": tokens,
        "residues": int(cut.sum()),
        "sequence_residues": int(lengths.sum()),
        "batches": plan.batches,
        "lower_bound": -(-tokens // 200),
        "efficiency": round(tokens / (200 * plan.batches), 6),
        "truncated_sequences": int((lengths > 100).sum()),
        "truncated_residues": int((lengths - cut).sum()),
        "windowed_sequences": 0,
        "windows": 0,
    }
    assert report["truncated_sequences"] > 0
    assert histogram == [
        [64, int((lengths <= 64).sum())],
        [128, int((lengths > 64).sum())],
        *([edge, 0] for edge in range(192, 1025, 64)),
    ]
    assert list(alternatives) == ["next_fit_decreasing", "sorted_padding", "unsorted_padding"]
    assert alternatives["next_fit_decreasing"]["batches"] >= plan.batches
    in_order = unsorted_padding_tokens(cut + 2, 200)
    assert alternatives["unsorted_padding"] == {
        "computed_tokens": in_order,
        "efficiency": round(tokens / in_order, 6),
    }


def test_windows_lose_no_residue(run, shard, caplog):
    caplog.set_level("INFO")
    report = json.loads(run(long_sequences="window", window_overlap=10)[2])
    lengths = np.array([len(residues) for residues in read_shard(shard).residues])
    longer = int((lengths > 100).sum())
    assert report["truncated_sequences"] == report["truncated_residues"] == 0
    assert report["sequence_residues"] == lengths.sum() < report["residues"]
    assert report["windowed_sequences"] == longer > 0
    assert report["windows"] == report["items"] - report["sequences"] + longer
    told = f"{longer} sequences exceed 100 residues and are computed in {report['windows']} windows"
    assert told in caplog.text


@pytest.mark.fault(31)
def test_truncation_is_told(run, caplog):
    run()
    assert "exceed 100 residues and are truncated" in caplog.text


@pytest.mark.fault(43)
def test_a_shard_without_sequences_has_an_empty_plan(run, shard):
    shard.write_bytes(b"")
    plan, _, content = run()
    report = json.loads(content)
    assert (plan.batches, report["batches"], report["lower_bound"]) == (0, 0, 0)
    assert report["efficiency"] == 0.0


def test_parameters_are_refused_before_the_shard_is_read(run, shard):
    shard.unlink()
    with pytest.raises(InputError, match="cannot hold"):
        run(token_budget=50)
    with pytest.raises(DataError, match=r"00007\.fasta"):
        run()


def test_edges_of_the_histogram_do_not_depend_on_the_lengths():
    short = length_histogram(np.array([1, 64, 65, 1024]))
    long = length_histogram(np.array([1025, 2048, 2049]))
    assert [edge for edge, _ in long] == [*(edge for edge, _ in short), 2048, 4096]
    assert short[:2] == [[64, 2], [128, 1]]
    assert short[-1] == [1024, 1]
    assert [count for _, count in long[-2:]] == [2, 1]
