"""Wrong configurations end before any work, with a sentence that says what is wrong."""

import csv
import io
import json

import anndata
import pytest

from tests.workflow.snakemake_runs import ROOT, Sample, snakemake

pytestmark = pytest.mark.workflow

REFUSED = {
    "unknown key": ("modell: demo", "modell"),
    "unknown nested key": ("plan: {token_budgt: 4096}", "token_budgt"),
    "wrong type": ("split: {shard_tokens: many}", "shard_tokens"),
    "a number that is none": ("split: {max_invalid_fraction: .nan}", "max_invalid_fraction"),
    "a list in place of a number": ("split: {max_invalid_fraction: [0.5]}", "max_invalid_fraction"),
    "more residues than can be counted": ("split: {max_record_residues: 3000000000}", "2147483647"),
    "text that is no YAML": ("split: {shard_tokens: '[1'}", "shard_tokens"),
    "a tag of YAML": ("split: {shard_tokens: '!!python/name:os.system'}", "shard_tokens"),
    "a device as a model": ("model: /dev/null", "/dev/null"),
    "a folder without a model": ("model: config", "config.json"),
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
    assert "WorkflowError" in run.text  # and no other exception
    assert "Traceback" not in run.text
    assert not list(workdir.rglob("pwned"))


def test_nested_values_on_the_command_line_are_laid_over_the_file_and_have_their_types(fresh):
    workdir = fresh(config="plan: {max_sequence_length: 500}\nembed:\nmodel: demo")
    given = ["embed={dtype: float16, layers: [-1, 2]}", "plan={token_budget: 2048.0}"]
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


SHEETS = {
    "sample as a path": ("sample\tfasta\n../up\ta.faa\n", "line 2, column sample"),
    "sample as a command": ("sample\tfasta\n$(touch pwned)\ta.faa\n", "'$(touch pwned)'"),
    "sample as an option": ("sample\tfasta\n-n\ta.faa\n", "line 2, column sample"),
    "empty sample": ("sample\tfasta\na\ta.faa\n\ta.faa\n", "line 3, column sample"),
    "unknown column": ("sample\tfasta\tcolour\na\ta.faa\tred\n", "line 1: unknown column 'colour'"),
    "missing column": ("sample\na\n", "expected one column called fasta"),
    "row with too few fields": ("sample\tfasta\na\n", "line 2: expected 2 cells, found 1"),
    "wildcard in a path": ("sample\tfasta\na\t{sample}.faa\n", "'{sample}.faa'"),
    "no rows": ("sample\tfasta\n", "has no rows"),
    "comments only": ("# mine\n\t\n", "no header line"),
    "a file twice": ("sample\tfasta\na\ta.faa\na\t./a.faa\n", "first in line 2 as 'a.faa'"),
    "names that differ in case": ("sample\tfasta\nx\ta.faa\nX\tb.faa\n", "only in case"),
    "all missing files": ("sample,fasta\na,1.faa\na,2.faa\n", "line 3: 2.faa does not exist"),
    "a folder": ("sample\tfasta\na\tconfig\n", "config is a folder"),
    "a device": ("sample\tfasta\na\t/dev/null\n", "line 2: /dev/null is a pipe or a device"),
    "a line without an end": ("[" * 200_000, "line 1: field larger than"),
}
ROWS = {
    "blank rows of tabs": "sample\tfasta\na\ta.faa\n\t\n \t \n\n",
    "comments": "# mine\nsample\tfasta\n#b\tb.faa\na\ta.faa\n",
    "commas": "sample,fasta\na,a.faa\n",
    "quotes": 'sample,fasta\na,"a.faa"\n',
    "semicolons": "fasta;sample\na.faa;a\n",
    "case and spaces": " Sample \tFASTA\n a \t a.faa \n",
    "line ends of Windows": "sample\tfasta\r\na\ta.faa\r\n",
    "line ends of old Macs": "sample\tfasta\ra\ta.faa\r",
    "byte order mark": "\ufeffsample\tfasta\na\ta.faa\n",
}


def sheet_functions() -> dict:
    """Run samples.smk, which is Python, up to where it reads the sheet."""
    text = (ROOT / "workflow" / "rules" / "samples.smk").read_text().partition("\nSHEET =")[0]
    names = {"WorkflowError": ValueError}
    exec(text, names)  # noqa: S102
    return names


@pytest.mark.parametrize("case", ROWS)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_sheets_as_spreadsheets_write_them_are_read(case, encoding, tmp_path):
    text = ROWS[case]
    if encoding == "utf-16":
        text = text.removeprefix("\ufeff")
    (tmp_path / "sheet").write_bytes(text.encode(encoding))
    samples = sheet_functions()["read_samples"](tmp_path / "sheet")
    assert {name: [path for _, path in rows] for name, rows in samples.items()} == {"a": ["a.faa"]}


def test_a_workbook_is_refused_as_one(tmp_path):
    (tmp_path / "sheet").write_bytes(b"PK\x03\x04...")
    with pytest.raises(ValueError, match="save it as tab-separated text"):
        sheet_functions()["read_samples"](tmp_path / "sheet")


EARLY = {
    "layer": ("embed: {layers: [33]}", "demo has the layers 0 (the embedded residues) to 6"),
    "layer twice": ("embed: {layers: [-1, 6]}", "which are the same layer"),
    "dtype": ("embed: {device: cpu, dtype: float8}", "float8 needs a GPU"),
    "residues": ("embed: {dtype: float8, pooling: none}", "accept_float8_residues: true"),
    "export": ("{embed: {pooling: max}, merge: {exports: [fair-esm]}}", "no vectors of"),
}


@pytest.mark.fault(52)
@pytest.mark.parametrize("case", EARLY)
def test_what_cannot_be_had_is_refused_when_the_workflow_is_read(case, fresh):
    config, message = EARLY[case]
    run = snakemake(fresh(config=config), "--dry-run")
    assert (run.status, message in run.text) == (1, True), run.text


@pytest.mark.fault(34, 50, 51, 52)
def test_refused_samples_are_not_tried_again_and_the_others_finish(fresh):
    sheet = "sample\tfasta\na\ta.faa\nslash\tslash.faa\nempty\tempty.faa\n"
    workdir = fresh(sheet=sheet, config="merge: {exports: [uniprot-h5]}")
    (workdir / "slash.faa").write_text(">ok\nMKT\n>x/y\nMKV\n")
    (workdir / "empty.faa").write_text("")
    run = snakemake(workdir, "--retries", "2")
    assert run.status == 1
    assert "slash.faa, line 3" in run.text
    assert "no record in empty.faa" in run.text
    assert run.jobs["split"] == 3
    assert (workdir / "results/a/embeddings.h5ad").exists()
    assert "without 2 sample(s)" in run.text
    assert (workdir / "results/_all/overview.html").exists()


@pytest.mark.fault(46, 55)
def test_damaged_and_foreign_results_are_made_again_and_never_stop_a_dry_run(workdir):
    sample = Sample(workdir, "lambda")
    manifest = sample.split / "shards" / "manifest.json"
    manifest.write_bytes(manifest.read_bytes()[:-9])
    foreign = (workdir / "results/awkward/embeddings.h5ad").read_bytes()
    (sample.results / "embeddings.h5ad").write_bytes(foreign)
    for option in ("--dry-run", "--unlock", "--summary"):
        run = snakemake(workdir, option)
        assert run.status == 0, run.text
    run = snakemake(workdir)
    assert run.status == 0, run.text
    assert "manifest.json is damaged: lambda is split again" in run.text
    assert "embed" not in run.jobs
    ids = anndata.read_h5ad(sample.results / "embeddings.h5ad").obs_names
    assert not set(ids) & set(
        anndata.read_h5ad(workdir / "results/awkward/embeddings.h5ad").obs_names
    )
    assert "Nothing to be done" in snakemake(workdir).text


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


@pytest.mark.fault(35)
@pytest.mark.parametrize("case", SHEETS)
def test_wrong_sheet_is_refused_with_the_place(case, fresh):
    sheet, named = SHEETS[case]
    workdir = fresh(sheet=sheet)
    run = snakemake(workdir, "--dry-run")
    assert run.status == 1
    assert named in run.text
    assert "samples.tsv" in run.text
    assert not list(workdir.rglob("pwned"))


def test_config_file_may_be_left_out(fresh):
    workdir = fresh()
    (workdir / "config" / "config.yaml").unlink()
    assert snakemake(workdir, "--dry-run").status == 0
    (workdir / "a.faa").rename(workdir / "b.faa")
    (workdir / "mine.tsv").write_text("sample\tfasta\nb\tb.faa\n")
    assert snakemake(workdir, "--dry-run", "--config", "samples=mine.tsv").status == 0


@pytest.mark.fault(45)
def test_an_earlier_result_is_refused_as_the_target(workdir):
    result = "results/lambda/embeddings.h5ad"
    assert snakemake(workdir, result, "--dry-run").jobs == {}
    config = workdir / "config" / "config.yaml"
    config.write_text(config.read_text() + "\nduplicate_ids: suffix\n")
    for arguments in ([result], [result, "--dry-run"]):
        run = snakemake(workdir, *arguments)
        assert run.status == 1, run.text
        assert f"{result} is of an earlier input or configuration" in run.text
    assert snakemake(workdir, "--unlock").status == 0
    assert snakemake(workdir, "--dry-run").jobs["split"] == 2


@pytest.mark.fault(25)
def test_an_empty_sample_that_is_kept_gets_an_empty_result_of_each_kind(fresh):
    exports = "uniprot-h5, fair-esm, npy, parquet"
    workdir = fresh(
        "sample\tfasta\na\ta.faa\nnone\tnone.faa\n",
        f"model: demo\nempty_samples: keep\nmerge: {{exports: [{exports}]}}\n"
        "embed: {pooling: none, pseudo_perplexity: one-pass}\n",
        **{"a.faa": ">x\nMKVLLAGHIW\n", "none.faa": ">e\n\n>t\nno residues at all (4).\n"},
    )
    run = snakemake(workdir)
    assert run.status == 0, run.text
    results = workdir / "results" / "none"
    assert anndata.read_h5ad(results / "embeddings.h5ad").shape == (0, 320)
    assert len((results / "quarantine.tsv").read_text().splitlines()) == 3
    assert "none" in (workdir / "results" / "_all" / "overview.html").read_text()
    assert snakemake(workdir).jobs == {}


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
