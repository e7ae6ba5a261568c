"""Wrong configurations end before any work, with a sentence that says what is wrong."""

import csv
import io
import json

import anndata
import pytest

from tests.workflow.snakemake_runs import snakemake

pytestmark = pytest.mark.workflow

REFUSED = {
    "unknown key": ("modell: demo", "modell"),
    "unknown nested key": ("plan: {token_budgt: 4096}", "token_budgt"),
    "wrong type": ("split: {shard_tokens: many}", "shard_tokens"),
    "unknown choice": ("plan: {long_sequences: windows}", "truncate"),
    "overlap of whole windows": (
        "plan: {long_sequences: window, window_overlap: 1022}",
        "windows have 1022 residues",
    ),
    "budget below the longest sequence": ("plan: {token_budget: 1023}", "takes 1024 tokens"),
    "longest sequence above the budget": ("plan: {max_sequence_length: 5000}", "5002 tokens"),
    "value in place of a section": ("embed: float16", "embed is a section"),
    "unknown model": ("model: esm2_t33", "esm2_t33_650M_UR50D"),
    "command as a model": ("model: 'x; touch pwned'", "'x; touch pwned'"),
    "command as a device": ("embed: {device: '$(touch pwned)'}", "device"),
    "empty sheet path": ("samples: ''", "samples"),
    "missing sheet": ("samples: absent.tsv", "absent.tsv"),
}


@pytest.mark.fault(32, 35)
@pytest.mark.parametrize("case", REFUSED)
def test_wrong_config_is_refused_by_name(case, fresh):
    config, named = REFUSED[case]
    workdir = fresh(config=config)
    run = snakemake(workdir, "--dry-run")
    assert run.status == 1
    assert named in run.text
    assert "Traceback" not in run.text
    assert not list(workdir.rglob("pwned"))


def test_nested_values_on_the_command_line_are_laid_over_the_file_and_have_their_types(fresh):
    workdir = fresh(config="plan: {max_sequence_length: 500}\nembed:\nmodel: demo")
    given = ["embed={dtype: float16, layers: [-1, 2]}", "plan={token_budget: 2048}"]
    run = snakemake(workdir, "plans", "--config", *given)
    assert run.status == 0, run.text
    assert "--token-budget=2048 --max-sequence-length=500" in run.text
    run = snakemake(workdir, "--dry-run", "--printshellcmds", "--config", *given)
    assert run.status == 0, run.text
    assert "--dtype=float16" in run.text
    assert "--layers=-1 --layers=2" in run.text


@pytest.mark.parametrize("given", ["plan={token_budget: many}", "plan=2048", "embed={dtyp: x}"])
def test_wrong_values_on_the_command_line_are_refused(given, fresh):
    run = snakemake(fresh(), "--dry-run", "--config", given)
    assert run.status == 1
    assert given.partition("=")[0] in run.text
    assert "Traceback" not in run.text


def test_dry_run_says_what_is_asked_for_and_how_far_it_is(fresh, finished):
    text = snakemake(fresh(), "--dry-run").text
    assert "1 sample(s), 1 file(s), 0.0 kB; model demo (random weights: no biology)" in text
    assert "a: to be split; its shards, and so their jobs, are known after that" in text
    text = snakemake(finished, "--dry-run").text
    assert "awkward: 11 records in 1 shard(s), 1 embedded, merged" in text


@pytest.mark.parametrize(
    ("config", "warned"),
    [
        ("embed: {pooling: none}", True),
        ("{embed: {pooling: none}, split: {shard_tokens: 5000000}}", False),
        ("embed: {pooling: max}", False),
    ],
)
def test_residues_of_large_shards_are_warned_of(fresh, config, warned):
    text = snakemake(fresh(config=config), "--dry-run").text
    assert ("an array of all residues of a shard may take hundreds of GB" in text) == warned


def test_config_file_may_be_left_out(fresh):
    workdir = fresh()
    (workdir / "config" / "config.yaml").unlink()
    assert snakemake(workdir, "--dry-run").status == 0
    (workdir / "a.faa").rename(workdir / "b.faa")
    (workdir / "mine.tsv").write_text("sample\tfasta\nb\tb.faa\n")
    assert snakemake(workdir, "--dry-run", "--config", "samples=mine.tsv").status == 0


def test_folder_with_nothing_in_it_is_told_what_is_needed(tmp_path):
    run = snakemake(tmp_path, "--dry-run")
    assert run.status == 1
    assert "cannot read the sample sheet config/samples.tsv" in run.text
    assert "columns sample and fasta" in run.text
    assert str(tmp_path) in run.text


def test_missing_fasta_is_named_before_anything_runs(fresh):
    workdir = fresh(sheet="sample\tfasta\na\ta.faa\nb\tabsent.faa\n")
    run = snakemake(workdir)
    assert run.status == 1
    assert "absent.faa" in run.text
    assert not run.jobs


@pytest.mark.fault(35)
def test_shell_characters_in_paths_stay_characters(fresh):
    name = "odd ; touch pwned; $(touch pwned) `touch pwned` ' \" & # *.faa"
    sheet = io.StringIO()
    writer = csv.writer(sheet, dialect="excel-tab", lineterminator="\n")
    writer.writerows([["sample", "fasta"], ["a", name]])
    cache = "cache; touch pwned; $(touch pwned)"
    workdir = fresh(sheet=sheet.getvalue(), config=json.dumps({"cache_dir": cache}))
    (workdir / "a.faa").rename(workdir / name)
    run = snakemake(workdir, "plans")
    assert run.status == 0, run.text
    assert (workdir / cache / "plans").is_dir()
    assert not list(workdir.parent.rglob("pwned"))


@pytest.mark.long
@pytest.mark.fault(33, 35)
def test_shell_characters_and_ids_as_paths_go_through_the_whole_workflow(tmp_path, fresh):
    ids = [
        "../up",
        "/etc/passwd",
        "$(touch${IFS}pwned)",
        ";touch${IFS}pwned",
        "`id`",
        "a'b\"c",
        "--x",
    ]
    workdir = fresh(config=json.dumps({"cache_dir": "c; touch pwned"}))
    text = "".join(f">{name}\nMKVLA{'ACDEFGH'[number]}\n" for number, name in enumerate(ids))
    (workdir / "a.faa").write_text(text)
    odd = workdir.rename(tmp_path / "work $(touch pwned) ; dir")
    run = snakemake(odd)
    assert run.status == 0, run.text
    assert list(anndata.read_h5ad(odd / "results/a/embeddings.h5ad").obs_names) == ids
    assert not list(tmp_path.rglob("pwned"))
    assert not (tmp_path / "up").exists()
    assert snakemake(odd).text.count("Nothing to be done") == 1
