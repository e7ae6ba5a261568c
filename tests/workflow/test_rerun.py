"""The table "what runs again": a change runs the steps whose output it changes, and no others."""

import gzip
import json
import os
import re
import shutil
from pathlib import Path

import pytest

from tests.workflow.snakemake_runs import ROOT, Sample, snakemake

pytestmark = pytest.mark.workflow

SAMPLES = {"lambda", "awkward"}


def shards(workdir: Path, sample: str) -> list[str]:
    return Sample(workdir, sample).shards


def dry_run(workdir: Path, *arguments: str, workflow: Path = ROOT / "workflow") -> set[str]:
    run = snakemake(workdir, "--dry-run", *arguments, workflow=workflow)
    assert run.status == 0, run.text
    return set(run.jobs)


AFTER_MERGE = {"request", "merge", "report", "overview"}
# The checkpoints decide about plan and embed.
AFTER_SPLIT = {"split", *AFTER_MERGE}
AFTER_EMBED = {"embed", *AFTER_MERGE}
MEASURED = {"token_budget", *AFTER_EMBED}
CONFIG_CHANGES = {
    "nothing": ("{}", set()),
    "model": ("model: my model.pt", {"fetch_model", *MEASURED}),
    "input_type": ("input_type: any", AFTER_SPLIT),
    "ids": ("ids: whole_header", AFTER_SPLIT),
    "duplicate_ids": ("duplicate_ids: suffix", AFTER_SPLIT),
    "empty_samples": ("empty_samples: keep", AFTER_SPLIT),
    "split.shard_tokens": ("split: {shard_tokens: 500}", AFTER_SPLIT),
    "split.max_invalid_fraction": ("split: {max_invalid_fraction: 0.25}", AFTER_SPLIT),
    "split.max_unknown_fraction": ("split: {max_unknown_fraction: 0.25}", AFTER_SPLIT),
    "split.max_record_residues": ("split: {max_record_residues: 9999}", AFTER_SPLIT),
    "plan.token_budget": ("plan: {token_budget: 2048}", {"plan", *MEASURED}),
    "plan.max_sequence_length": ("plan: {max_sequence_length: 500}", {"plan", *MEASURED}),
    "plan.long_sequences": ("plan: {long_sequences: window}", {"plan", *MEASURED}),
    "plan.window_overlap": ("plan: {window_overlap: 20}", set()),  # where there are no windows
    "embed.device": ("embed: {device: cpu}", set()),
    "embed.dtype": ("embed: {dtype: bfloat16}", MEASURED),
    "embed.layers": ("embed: {layers: [2]}", MEASURED),
    "embed.pooling": (
        "{embed: {pooling: max}, merge: {exports: [parquet, npy, uniprot-h5]}}",
        MEASURED,
    ),
    "embed.accept_float8_residues": ("embed: {accept_float8_residues: true}", set()),
    "embed.pseudo_perplexity": ("embed: {pseudo_perplexity: one-pass}", MEASURED),
    "embed.output_dtype": ("embed: {output_dtype: float32}", MEASURED),
    "merge.exports": ("merge: {exports: [npy, uniprot-h5]}", AFTER_MERGE),
    "genes.max_contig_bases": ("genes: {max_contig_bases: 99}", set()),  # without contigs
    "cache_dir": ("cache_dir: elsewhere", set()),
}


@pytest.mark.parametrize("key", CONFIG_CHANGES)
def test_changed_config_key_runs_only_steps_whose_output_it_changes(key, finished, tmp_path):
    changes, expected = CONFIG_CHANGES[key]
    (finished / "my model.pt").touch()
    config = tmp_path / "changes.yaml"
    config.write_text(changes + "\n")
    assert dry_run(finished, "--configfile", str(config)) == expected


def test_threads_and_resources_run_nothing_again(finished):
    options = ["--set-threads", "embed=1", "--set-resources", "embed:token_budget=1024"]
    assert dry_run(finished, *options, "embed:runtime=5", "plan:mem_mb=1", "embed:gpu=0") == set()


FORMAT_CHANGES = {
    "model": {"fetch_model", *MEASURED},
    "split": AFTER_SPLIT,
    "plan": {"plan", *AFTER_EMBED},
    "budget": set(),  # what is embedded stays, and nothing else needs it
    "embed": AFTER_EMBED,
    "merge": AFTER_MERGE,
    "report": AFTER_MERGE,
}


@pytest.mark.parametrize("name", FORMAT_CHANGES)
def test_raised_format_number_runs_the_step_that_writes_it_and_those_after(
    name, finished, own_workflow
):
    common = own_workflow / "rules" / "config.smk"
    changed, count = re.subn(rf'("{name}"): \d+', r"\1: 999", common.read_text())
    assert count == 1
    common.write_text(changed)
    assert dry_run(finished, workflow=own_workflow) == FORMAT_CHANGES[name]


def test_unchanged_workflow_in_another_folder_runs_nothing(finished, own_workflow):
    assert dry_run(finished, workflow=own_workflow) == set()


def test_touched_files_run_nothing(workdir):
    for path in [workdir / "data" / "lambda.faa", *Sample(workdir, "lambda").plans.iterdir()]:
        os.utime(path)
    assert dry_run(workdir) == set()


@pytest.mark.fault(1)
def test_missing_embedding_is_computed_again_and_no_other(workdir):
    sample = Sample(workdir, "lambda")
    (sample.embeddings / f"{sample.shards[0]}.npy").unlink()
    (workdir / "results" / "lambda" / "embeddings.h5ad").unlink()
    run = snakemake(workdir, "--dry-run")
    assert dict(run.jobs) == {"embed": 1, "request": 2, "merge": 1, "report": 1, "overview": 1}


def test_lost_weights_and_budget_are_made_again_but_nothing_is_embedded_again(workdir):
    shutil.rmtree(workdir / "resources")
    assert dry_run(workdir) == set()
    sample = Sample(workdir, "lambda")
    (sample.embeddings / f"{sample.shards[0]}.npy").unlink()
    (workdir / "results" / "lambda" / "embeddings.h5ad").unlink()
    run = snakemake(workdir)
    assert run.status == 0, run.text
    assert (run.jobs["embed"], run.jobs["fetch_model"], run.jobs["token_budget"]) == (1, 1, 1)


def test_two_dtypes_that_swap_their_values_run_embed(workdir):
    config = workdir / "swapped.yaml"
    config.write_text("embed: {dtype: float16, output_dtype: float32}\n")
    run = snakemake(workdir, "--configfile", str(config))
    assert run.status == 0, run.text
    sample = Sample(workdir, "lambda")
    assert run.jobs["embed"] == len(sample.shards) + len(Sample(workdir, "awkward").shards)
    receipt = json.loads((sample.embeddings / f"{sample.shards[0]}.json").read_text())
    assert (receipt["compute_dtype"], receipt["dtype"]) == ("float16", "float32")


def test_rows_of_a_sample_in_another_order_run_split(workdir):
    sheet = workdir / "config" / "samples.tsv"
    header, *rows = sheet.read_text().splitlines()
    sheet.write_text("\n".join([header, *reversed(rows)]) + "\n")
    assert dry_run(workdir) == AFTER_SPLIT


def test_added_sequence_runs_only_its_shard(workdir):
    before = shards(workdir, "lambda")
    assert len(before) > 1
    with (workdir / "data" / "lambda.faa").open("a") as handle:
        handle.write(">added\nMKWVTFISLL\n")
    run = snakemake(workdir)
    assert run.status == 0, run.text
    after = shards(workdir, "lambda")
    assert len(after) == len(before)
    assert len(set(after) - set(before)) == 1
    assert dict(run.jobs) == {
        "split": 1,
        "plan": 1,
        "embed": 1,
        "request": 2,
        "merge": 1,
        "report": 1,
        "overview": 1,
    }
    assert dry_run(workdir) == set()


def test_going_back_to_an_earlier_configuration_finds_its_files_again(workdir):
    config = workdir / "other.yaml"
    config.write_text("{split: {shard_tokens: 1000000}, embed: {layers: [2]}}\n")
    run = snakemake(workdir, "--configfile", str(config))
    assert run.status == 0, run.text
    assert len(shards(workdir, "lambda")) == 1
    assert dry_run(workdir) == AFTER_MERGE


def test_what_no_run_needs_any_more_is_pruned_on_request(workdir):
    config = workdir / "other.yaml"
    config.write_text("{split: {shard_tokens: 1000000}, embed: {layers: [2]}}\n")
    run = snakemake(workdir, "--configfile", str(config))
    assert run.status == 0, run.text
    assert "snakemake --cores 1 prune" in snakemake(workdir, "--dry-run").text
    assert snakemake(workdir, "prune", "--configfile", str(config)).status == 0
    for kind in ("split", "plan", "embeddings"):
        assert len(list((workdir / "results" / "lambda" / kind).iterdir())) == 1
    assert dry_run(workdir, "--configfile", str(config)) == set()
    assert dry_run(workdir) == {"split", "plan", *MEASURED} - {"plan", "embed"}


@pytest.mark.fault(10)
@pytest.mark.parametrize("seconds", [0, -(10**6)], ids=["newer", "older"])
def test_other_content_under_the_same_path_runs_split(seconds, workdir):
    path = workdir / "data" / "awkward_2.faa.gz"
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()).replace(b">M", b">other")))
    now = path.stat().st_mtime
    os.utime(path, (now, now + seconds))
    assert dry_run(workdir) == AFTER_SPLIT


def test_deleted_results_take_their_plans_from_the_cache(workdir):
    shutil.rmtree(workdir / "results")
    shutil.rmtree(workdir / "logs")
    run = snakemake(workdir, "plans")
    assert run.status == 0, run.text
    for sample in SAMPLES:
        for shard in shards(workdir, sample):
            log = (workdir / "logs" / "plan" / sample / f"{shard}.log").read_text()
            assert "plan cache hit" in log


def test_plans_need_neither_model_nor_device(fresh):
    run = snakemake(fresh(), "plans")
    assert run.status == 0, run.text
    assert dict(run.jobs) == {"split": 1, "plan": 1, "request": 1, "plan_report": 1}
