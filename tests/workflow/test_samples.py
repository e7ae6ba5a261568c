"""Sample sheets: what is read, and the one sentence that refuses what is not.

`workflow/rules/samples.smk` is Python without a Snakemake keyword, so most sheets are tried without
a run of Snakemake; a few real dry runs show that the sentences reach the terminal.
"""

import os
from pathlib import Path

import jsonschema
import pytest
import yaml
from snakemake.exceptions import WorkflowError

from tests.workflow.snakemake_runs import ROOT, snakemake

SHEET = "config/samples.tsv"
SCHEMA = yaml.safe_load((ROOT / "workflow" / "schemas" / "samples.schema.yaml").read_text())


@pytest.fixture
def smk(tmp_path, monkeypatch):
    """The functions of samples.smk, in a working directory with some FASTA files."""
    monkeypatch.chdir(tmp_path)
    for name in ("config/x", "data/a.faa", "data/b c.faa", "data/b,c.faa", "data/é.faa"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(">a\nMK\n")
    path = ROOT / "workflow" / "rules" / "samples.smk"
    names = {}
    functions, _, _ = path.read_text().partition("\nSAMPLES = ")
    exec(compile(functions, path, "exec"), names)  # noqa: S102 - a file of this project
    names["validate"] = lambda data, _schema: jsonschema.validate(data, SCHEMA)
    return names


def write(content):
    Path(SHEET).write_bytes(content if isinstance(content, bytes) else content.encode())
    return SHEET


A = {"a": ["data/a.faa"]}
AB = {"a": ["data/a.faa"], "b": ["data/b c.faa"]}
READ = {
    "plain": ("sample\tfasta\na\tdata/a.faa\nb\tdata/b c.faa\n", AB),
    "no final newline": ("sample\tfasta\na\tdata/a.faa", A),
    "columns in another order": ("fasta\tsample\ndata/a.faa\ta\n", A),
    "case and space of column names": (" Sample \tFASTA\na\tdata/a.faa\n", A),
    "byte order mark": ("\ufeffsample\tfasta\na\tdata/a.faa\n", A),
    "CRLF": ("sample\tfasta\r\na\tdata/a.faa\r\n", A),
    "old-Mac line ends": ("sample\tfasta\ra\tdata/a.faa\r", A),
    "blank rows": ("\n\nsample\tfasta\n\na\tdata/a.faa\n\n", A),
    "rows of tabs and spaces": ("\t\nsample\tfasta\na\tdata/a.faa\n\t\n \t \n\t\t\t\n", A),
    "comment before the header": ("# mine\n#\tx\nsample\tfasta\na\tdata/a.faa\n", A),
    "comment below, with an open quote": ('sample\tfasta\n# don"t\n "#\na\tdata/a.faa\n', A),
    "quoted comment": ('sample\tfasta\n"# a, b"\na\tdata/a.faa\n', A),
    "spaces around cells": ("sample\tfasta\n a \t data/a.faa \n", A),
    "no-break and zero-width spaces": ("sample\tfasta\n\u00a0a\tdata/a.faa\u200b\u2003\n", A),
    "empty columns at the end": ("sample\tfasta\t\t\na\tdata/a.faa\t\t\n", A),
    "commas": ("sample,fasta\na,data/a.faa\nb,data/b c.faa\n", AB),
    "semicolons": ("sample;fasta\na;data/a.faa\nb;data/b c.faa\n", AB),
    "rows of commas": (',,\nsample,fasta,\na,data/a.faa,\n,,\n"",""\n', A),
    "quoted comma in a path": ('sample,fasta\na,"data/b,c.faa"\n', {"a": ["data/b,c.faa"]}),
    "quoted names": ('"sample","fasta"\n"a","data/a.faa"\n', A),
    "comma in a path beside tabs": ("sample\tfasta\na\tdata/b,c.faa\n", {"a": ["data/b,c.faa"]}),
    "comma in a path beside semicolons": (
        "sample;fasta\na;data/b,c.faa\n",
        {"a": ["data/b,c.faa"]},
    ),
    "doubled quotes": ('sample\tfasta\na\t"x""y.faa"\n', {"a": ['x"y.faa']}),
    "quote inside a cell": ('sample\tfasta\na\tx"y.faa\n', {"a": ['x"y.faa']}),
    "letters beyond ASCII in a path": ("sample\tfasta\na\tdata/é.faa\n", {"a": ["data/é.faa"]}),
    "Unicode line separators stay in a path": (
        "sample\tfasta\na\tx\u2028y.faa\n",
        {"a": ["x\u2028y.faa"]},
    ),
    "UTF-16 of Excel": ("\ufeffsample\tfasta\r\na\tdata/é.faa\r\n".encode("utf-16-le"), None),
    "UTF-16, the other order": ("\ufeffsample\tfasta\na\tdata/é.faa\n".encode("utf-16-be"), None),
    "several files of a sample": (
        "sample\tfasta\nb\tdata/b c.faa\na\tdata/a.faa\nb\tdata/a.faa\n",
        {"b": ["data/b c.faa", "data/a.faa"], "a": ["data/a.faa"]},
    ),
    "one file in two samples": (
        "sample\tfasta\na\tdata/a.faa\nb\tdata/a.faa\n",
        {"a": ["data/a.faa"], "b": ["data/a.faa"]},
    ),
    "files that are not there": (
        "sample\tfasta\na\tnone.faa\na\tnone2.faa\n",
        {"a": ["none.faa", "none2.faa"]},
    ),
    "the longest sample name": (f"sample\tfasta\n{'a' * 100}\tx\n", {"a" * 100: ["x"]}),
}


@pytest.mark.parametrize("case", READ)
def test_sheet_is_read(case, smk):
    content, expected = READ[case]
    assert smk["read_samples"](write(content)) == (expected or {"a": ["data/é.faa"]})


# What the sentence has to name: the line (and column), what was found, what was expected.
REFUSED = {
    "nothing in it": ("", ["no rows", "columns sample and fasta"]),
    "comments only": ("# a\n\n", ["no rows", "columns sample and fasta"]),
    "header only": ("sample\tfasta\n", ["line 1", "no rows"]),
    "header below comments, blank rows": ("# x\n\nsample\tfasta\n\t\n", ["line 3", "no rows"]),
    "no header": ("a\tdata/a.faa\n", ["line 1", "no column sample", "'data/a.faa'"]),
    "missing column": ("sample\na\n", ["line 1", "no column fasta", "'sample'"]),
    "separated by spaces": ("sample fasta\na b\n", ["line 1", "'sample fasta'", "a tab"]),
    "unknown column": (
        "sample\tfasta\tcolour\na\ta.faa\tred\n",
        ["line 1, column 'colour'", "unknown", "expected"],
    ),
    "nameless column": ("sample\t\tfasta\na\t\ta.faa\n", ["line 1, column ''", "unknown"]),
    "column twice": ("sample\tfasta\tSample\na\tx\ta\n", ["line 1, column sample", "twice"]),
    "too few cells": ("sample\tfasta\na\n", ["line 2, column fasta", "expected 2 cells"]),
    "commas below tabs": ("sample\tfasta\na,a.faa\n", ["line 2, column fasta", "expected 2 cells"]),
    "too many cells": ("sample\tfasta\na\ta.faa\tred\n", ["line 2", "3 cells", "'red'"]),
    "unquoted comma": ("sample,fasta\na,b,c.faa\n", ["line 2", "3 cells", "'c.faa'"]),
    "empty sample": ("sample\tfasta\na\tx\n\ty\n", ["line 3, column sample", "empty"]),
    "empty path": ("sample,fasta\na,\n", ["line 2, column fasta", "empty"]),
    "path as a sample": ("sample\tfasta\n../up\tx\n", ["line 2, column sample", "'../up'"]),
    "command as a sample": (
        "sample\tfasta\n$(touch pwned)\tx\n",
        ["line 2, column sample", "'$(touch pwned)'"],
    ),
    "option as a sample": ("sample\tfasta\n-n\tx\n", ["line 2, column sample", "'-n'"]),
    "other letters in a sample": ("sample\tfasta\né\tx\n", ["line 2, column sample", "'é'"]),
    "space in a sample": ("sample\tfasta\na b\tx\n", ["line 2, column sample", "'a b'"]),
    "long sample": (f"sample\tfasta\n{'a' * 101}\tx\n", ["line 2, column sample", "100"]),
    "braces": ("sample\tfasta\na\t{sample}.faa\n", ["line 2, column fasta", "{sample}.faa"]),
    "control character": ("sample\tfasta\na\tx\x0by\n", ["line 2, column fasta", r"'\x0b'"]),
    "control character at the end": ("sample\tfasta\na\tx\x1f\n", ["line 2", r"'\x1f'"]),
    "open quote": ('sample\tfasta\nb\ty\na\t"x\nc\tz\n', ["line 3", "cells", '"']),
    "open quote in the header": ('"sample\tfasta\nb\ty\n', ["line 1", "cells", '"']),
    "file twice": (
        "sample\tfasta\na\tdata/a.faa\n\na\tdata/a.faa\n",
        ["line 4, column fasta", "data/a.faa", "'a'", "line 2"],
    ),
    "file twice, spelt otherwise": (
        "sample\tfasta\na\tdata/a.faa\na\t./data/../data/a.faa\n",
        ["line 3", "./data/../data/a.faa", "line 2 (as data/a.faa)"],
    ),
    "missing file twice": ("sample\tfasta\na\tno.faa\na\t./no.faa\n", ["line 3", "line 2"]),
    "samples that differ in case": (
        "sample\tfasta\nb\tx\nAb\ty\naB\tz\n",
        ["line 4, column sample", "'aB'", "'Ab'", "line 3"],
    ),
    "Latin-1": ("sample\tfasta\na\té.faa\n".encode("latin-1"), ["line 2", "0xe9", "UTF-8"]),
    "UTF-16 cut off": ("\ufeffsample\tfasta\n".encode("utf-16-le")[:-1], ["UTF-16"]),
    "UTF-16 without a mark": ("sample\tfasta\n".encode("utf-16-le"), ["NUL", "UTF-8"]),
    "xlsx": (b"PK\x03\x04\x14\0\x06\0" + bytes(100), ["spreadsheet", "tab-separated"]),
    "xls": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(100), ["Excel", "tab-separated"]),
    "gzip": (b"\x1f\x8b\x08" + bytes(20), ["gzip"]),
    "a FASTA file": (">a\nMK\n", ["line 1", "'>a'", "columns sample and fasta"]),
    "a web page": ("<!DOCTYPE html>\n<html>\n", ["line 1", "'<!DOCTYPE html>'"]),
}


@pytest.mark.fault(35)
@pytest.mark.parametrize("case", REFUSED)
def test_sheet_is_refused_with_one_sentence(case, smk):
    content, named = REFUSED[case]
    with pytest.raises(WorkflowError) as caught:
        smk["read_samples"](write(content))
    text = str(caught.value)
    assert [part for part in [SHEET, *named] if part not in text] == []
    assert "\n" not in text
    assert len(text) < 400


def test_other_names_of_a_file_are_the_same_file(smk):
    os.symlink("a.faa", "data/link.faa")
    os.link("data/a.faa", "data/hard.faa")
    os.symlink("data", "linked")
    for other in ("data/link.faa", "data/hard.faa", "linked/a.faa", os.path.abspath("data/a.faa")):
        with pytest.raises(WorkflowError, match="line 2 "):
            smk["read_samples"](write(f"sample\tfasta\na\tdata/a.faa\na\t{other}\n"))


def test_sheet_that_cannot_be_opened_is_told_where_it_was_looked_for(smk, tmp_path):
    for sheet, cause in (("none.tsv", "No such file"), ("data", "Is a directory")):
        with pytest.raises(WorkflowError) as caught:
            smk["read_samples"](sheet)
        assert f"cannot read the sample sheet {sheet} (config: samples)" in str(caught.value)
        assert cause in str(caught.value)
        assert str(tmp_path) in str(caught.value)


def test_data_in_place_of_the_sheet_are_not_read_into_memory(smk):
    smk["LARGEST_SHEET"] = 1 << 20
    with pytest.raises(WorkflowError, match="more than 1 MB"):
        smk["read_samples"](write(b"sample\tfasta\n" + b"a\tb\n" * 300_000))


def test_schema_refuses_the_rows_that_the_sentences_refuse():
    """And whatever they let through fits it: `smk` validates what `test_sheet_is_read` reads."""
    for name in ("../up", "-n", "é", "a" * 101, ""):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({"rows": {"line 2": {"sample": name, "fasta": "x"}}}, SCHEMA)
    for path in ("{x}", "x\x0by", "x\x85y", ""):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({"rows": {"line 2": {"sample": "a", "fasta": path}}}, SCHEMA)


# The files


def check(smk, content):
    smk["check_fastas"](smk["read_rows"](write(content)))


def test_files_that_are_there_pass(smk):
    check(smk, "sample\tfasta\na\tdata/a.faa\nb\tdata/b c.faa\n")


def test_every_unusable_file_is_listed_with_its_line(smk, tmp_path):
    os.symlink("gone.faa", "data/dangling.faa")
    os.mkfifo("data/pipe")
    rows = ["a\tdata/a.faa", "b\tnone.faa", "", "# x", "c\tdata", "d\tnone.faa", "e\tdata/pipe"]
    rows += ["f\tdata/dangling.faa", "g\tdata/a.faa/x", "h\t~/x.faa"]
    with pytest.raises(WorkflowError) as caught:
        check(smk, "\n".join(["sample\tfasta", *rows]))
    text = str(caught.value)
    for expected in (
        f"{SHEET}, column fasta: 7 of 8 FASTA files",
        "line 3: none.faa does not exist",
        "line 6: data is a folder, not a file",
        "line 7: none.faa does not exist",
        "line 8: data/pipe is a pipe",
        "line 9: data/dangling.faa is a link to gone.faa, which does not exist",
        "line 10: data/a.faa/x cannot be read (Not a directory)",
        "line 11: ~/x.faa does not exist",
        f"from the working directory, {tmp_path}; ~ and $VARIABLES stay",
    ):
        assert expected in text


def test_file_that_may_not_be_read_is_named(smk, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, _mode: "b c" not in path)
    with pytest.raises(WorkflowError, match=r"line 3: data/b c\.faa cannot be read \(no permiss"):
        check(smk, "sample\tfasta\na\tdata/a.faa\nb\tdata/b c.faa\n")


def test_a_long_list_of_missing_files_has_an_end(smk):
    smk["LISTED_FILES"] = 3
    with pytest.raises(WorkflowError, match=r"no2\.faa does not exist\n  and 17 more\n"):
        check(smk, "sample\tfasta\n" + "".join(f"s{i}\tno{i}.faa\n" for i in range(20)))


# On the terminal


@pytest.mark.workflow
@pytest.mark.fault(35)
@pytest.mark.parametrize(
    "case", ["command as a sample", "braces", "header only", "too few cells", "file twice"]
)
def test_sentence_reaches_the_terminal_of_a_dry_run(case, fresh):
    content, named = REFUSED[case]
    workdir = fresh(sheet=content)
    run = snakemake(workdir, "--dry-run")
    assert run.status == 1
    assert not list(workdir.rglob("pwned"))
    assert [part for part in [SHEET, *named] if part not in run.text] == []
    assert "Traceback" not in run.text
    assert "schema" not in run.text


@pytest.mark.workflow
def test_sheet_of_a_spreadsheet_runs(fresh):
    sheet = "\ufeff# exported\r\nSample;Fasta;\r\na;a.faa;\r\n;;\r\n"
    run = snakemake(fresh(sheet=sheet), "--dry-run")
    assert run.status == 0, run.text
    assert "1 sample(s), 1 file(s)" in run.text
