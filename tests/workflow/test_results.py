"""What a finished run has written."""

import csv
import json
import re

import anndata
import h5py
import numpy as np
import pytest

from example.summarise import summarise
from tests.workflow.snakemake_runs import Sample, measured_budget, snakemake

pytestmark = pytest.mark.workflow


@pytest.mark.fault(31)
@pytest.mark.parametrize(("sample", "records"), [("lambda", 12), ("awkward", 11)])
def test_every_record_is_embedded_or_quarantined(sample, records, finished):
    results = finished / "results" / sample
    embedded = list(anndata.read_h5ad(results / "embeddings.h5ad").obs_names)
    with (results / "quarantine.tsv").open(newline="") as handle:
        refused = [row["id"] for row in csv.DictReader(handle, delimiter="\t")]
    assert len(embedded) + len(refused) == records
    assert not set(embedded) & set(refused)
    if sample == "awkward":
        assert refused == ["empty", "mostly_invalid"]


def test_rows_of_one_sample_are_read_in_the_order_of_the_sheet(finished):
    ids = list(anndata.read_h5ad(finished / "results/awkward/embeddings.h5ad").obs_names)
    assert ids[:5] == ["plain", "twin", "lower_case", "stop_codon", "inner_stop"]
    assert ids[5:] == ["with_J", "gaps", "long", "M"]


def test_exports_and_figures_are_written(finished):
    for name in [
        "embeddings.parquet",
        "embeddings.npy",
        "embeddings.tsv",
        "embeddings.h5",
        "packing_report.json",
        "packing_report.tsv",
        "report/summary.html",
        "report/ledger.html",
        "report/length_distribution.svg",
        "report/duplicates.svg",
        "report/packing_efficiency.svg",
        "report/packing_by_shard.svg",
        "report/throughput.svg",
    ]:
        assert (finished / "results" / "lambda" / name).stat().st_size > 0, name


def test_finished_run_has_nothing_to_do(finished):
    run = snakemake(finished)
    assert run.status == 0
    assert "Nothing to be done" in run.text


def test_report_is_made_offline(finished, tmp_path):
    for name in ("report.html", "report.zip"):
        report = tmp_path / name
        run = snakemake(finished, "--report", str(report))
        assert run.status == 0, run.text
        assert 100_000 < report.stat().st_size < 20_000_000


def test_summary_says_where_the_results_are(finished):
    folder = finished / "results" / "awkward"
    text = summarise(folder)
    assert "awkward: 11 records, 9 embedded, 2 quarantined" in text
    assert str(folder / "embeddings.h5ad") in text
    assert "carry no biology" in text


def test_shards_run_at_the_tokens_that_were_measured(finished):
    measured = json.loads(measured_budget(finished).read_text())
    receipt = json.loads(next(Sample(finished, "lambda").embeddings.glob("*.json")).read_text())
    assert receipt["tokens_per_step"] == measured["tokens_per_step"]


WINDOWS = """
plan: {max_sequence_length: 50, token_budget: 512, long_sequences: window, window_overlap: 10}
embed: {pooling: %s, pseudo_perplexity: %s, layers: [-1, 3]}
merge: {exports: [%s]}
"""


def test_windows_residues_and_scores_and_then_less(fresh):
    workdir = fresh(config=WINDOWS % ("none", "one-pass", "npy"))
    long = "MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQ" * 5
    (workdir / "a.faa").write_text(f">a\nMKT\n>long\n{long}\n>b\nMLLA\n>again\n{long}\n")
    run = snakemake(workdir)
    assert run.status == 0, run.text
    results = workdir / "results" / "a"
    data = anndata.read_h5ad(results / "embeddings.h5ad")
    assert data.obs.windows.tolist() == [1, 4, 1, 4]
    assert data.obs.truncated.tolist() == [False] * 4
    assert (data.obs.pseudo_perplexity > 1).all()
    with h5py.File(results / "residues.h5") as file:
        assert file["layer_6"].shape == file["layer_3"].shape == (3 + 4 + len(long), 320)
        for row, (first, end) in enumerate(zip(file["start"], file["end"], strict=True)):
            assert end - first == data.obs.length.iloc[row]
            mean = file["layer_6"][first:end].astype(float).mean(axis=0)
            np.testing.assert_allclose(data.X[row], mean, atol=1e-5)
    assert (data.X[1] == data.X[3]).all()
    report = json.loads((results / "packing_report.json").read_text())
    assert (report["ledger"]["in_windows"], report["ledger"]["truncated"]) == (2, 0)
    assert "in windows of 50 residues" in (results / "report" / "summary.html").read_text()

    (workdir / "config" / "config.yaml").write_text(WINDOWS % ("mean", "none", ""))
    run = snakemake(workdir)
    assert run.status == 0, run.text
    assert {"embed", "merge"} <= set(run.jobs)
    assert {path.name for path in results.iterdir() if path.name[0] in "er"} == {
        *("embeddings", "embeddings.h5ad", "report", "requests")
    }
    again = anndata.read_h5ad(results / "embeddings.h5ad")
    assert np.array_equal(again.X, data.X)
    assert "pseudo_perplexity" not in again.obs


def embedding_of(workdir, workflow):
    """Plan the sample `a`, and give the array that its only shard will have."""
    assert snakemake(workdir, "plans", workflow=workflow).status == 0
    text = snakemake(workdir, "--dry-run", workflow=workflow).text
    return re.search(r"results/a/embeddings/\w+/[\w-]+\.npy", text)[0]


@pytest.mark.fault(16)
def test_failed_embed_is_tried_again_at_last_with_fewer_tokens(fresh, own_workflow):
    """A stand-in for embed fails until it gets 100 tokens, as on a device with little memory."""
    rule = own_workflow / "rules" / "embed.smk"
    head, shell, _ = rule.read_text().partition("    shell:\n")
    stand_in = "'echo {resources.token_budget} >> attempts; [ {resources.token_budget} -le 100 ]"
    rule.write_text(f"{head}{shell}        {stand_in} && touch {{output}}'\n")
    workdir = fresh(config="plan: {token_budget: 400, max_sequence_length: 98}")
    target = embedding_of(workdir, own_workflow)
    run = snakemake(workdir, target, workflow=own_workflow)
    assert run.status == 0, run.text
    assert (workdir / "attempts").read_text().split() == ["400", "400", "200", "100"]
    assert "Nothing to be done" in snakemake(workdir, target, workflow=own_workflow).text


def test_every_log_ends_with_a_line_for_machines_and_has_no_control_characters(finished):
    logs = sorted((finished / "logs").rglob("*.log"))
    steps = set()
    for path in logs:
        text = path.read_text()
        assert all(character.isprintable() or character == "\n" for character in text), path
        line = json.loads(text.splitlines()[-1])
        assert line["status"] == "done", path
        assert line.keys() == {
            *("step", "status", "seconds", "peak_memory_bytes", "version", "result")
        }
        steps.add(line["step"])
    assert {"split", "plan", "model fetch", "budget", "embed", "merge", "report run"} <= steps


@pytest.mark.fault(15)
def test_job_that_was_killed_for_memory_is_tried_again_with_more(fresh, own_workflow):
    """A stand-in for embed is killed twice, as by a cgroup."""
    rule = own_workflow / "rules" / "embed.smk"
    head, shell, _ = rule.read_text().partition("    shell:\n")
    stand_in = "'echo {resources.mem_mb} >> attempts; [ $(wc -l < attempts) -ge 3 ] || kill -9 $$;"
    rule.write_text(f"{head}{shell}        {stand_in} touch {{output}}'\n")
    workdir = fresh()
    run = snakemake(workdir, embedding_of(workdir, own_workflow), workflow=own_workflow)
    assert run.status == 0, run.text
    first, second, third = map(int, (workdir / "attempts").read_text().split())
    assert first < second < third
