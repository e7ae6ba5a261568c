"""`virnucpro run`: what it writes and calls. Snakemake itself: tests/workflow/test_ways.py."""

import gzip
import os
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.genes.flat_files import cds, entry
from tests.unit.genes.genomes import fasta, genome
from virnucpro.cli import cli, configuration
from virnucpro.cli import run as run_module
from virnucpro.cli.configuration import changes, config_text, configuration_keys
from virnucpro.cli.shipped import SCHEMA, SNAKEFILE, shipped
from virnucpro.cli.workdir import find_files, find_samples
from virnucpro.errors import InputError
from virnucpro.genes import finder
from virnucpro.genes.detect import detect_input_type
from virnucpro.model import visible


class Called(BaseException):
    """Ends a command where it would become Snakemake."""


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Call `virnucpro run` in a folder with a.faa and b.faa; gives the words of what it becomes."""
    words = []

    def execv(program, command):
        assert program == sys.executable
        words[:] = command
        raise Called

    monkeypatch.setattr(run_module.os, "execv", execv)
    monkeypatch.chdir(tmp_path)
    for name in ("a.faa", "b.faa"):
        (tmp_path / name).write_text(">x\nMKT\n")

    def call(*arguments):
        words.clear()
        try:
            result = CliRunner().invoke(
                cli, ["run", *map(str, arguments)], catch_exceptions=False, standalone_mode=False
            )
        except Called:
            return list(words)
        if result.exception:
            raise result.exception
        raise AssertionError(f"Snakemake was not called: {result.output}")

    return call


def written(out="out"):
    return yaml.safe_load(Path(out, "config/config.yaml").read_text())


def rows(out="out"):
    return Path(out, "config/samples.tsv").read_text().splitlines()[1:]


def test_it_calls_snakemake_on_the_shipped_workflow_with_what_stands_behind_the_dashes(run):
    words = run("a.faa", "-o", "out", "--model", "demo", "--cores", 3, "--", "-n", "--", "x")
    assert words == [
        *(sys.executable, "-m", "snakemake", "--snakefile", str(shipped(SNAKEFILE))),
        *("--directory", os.path.abspath("out"), "--cores", "3", "-n", "--", "x"),
    ]


def test_plan_only_asks_for_the_plans(run):
    words = run("a.faa", "-o", "out", "--model", "demo", "--plan-only")
    assert words[3] == "plans"
    assert words[-2:] == ["--cores", "all"]


def test_every_key_of_the_schema_but_the_sheet_is_an_option_with_its_choices():
    command = cli.commands["run"]
    options = {each for option in configuration.key_options() for each in option.opts}
    assert len(options) == len(configuration_keys()) - 1
    text = CliRunner().invoke(command, ["--help"]).output
    for key in configuration_keys():
        if key.path != ("samples",):
            assert f"--{key.path[-1].replace('_', '-')} " in text
    assert "[truncate|window]" in text
    words = " ".join(text.split())
    assert "[default: none, it has to be named]" in words  # not demo: random weights
    assert "[default: what the files hold]" in words
    assert "--samples" not in text


def test_given_options_are_written_and_all_others_have_their_defaults(run):
    run(
        *("a.faa", "-o", "out", "--model", "demo", "--layers", -1, "--layers", 2),
        *("--max-unknown-fraction", 0.5, "--exports", "npy", "--token-budget", 2048),
    )
    config = written()
    assert config["embed"]["layers"] == [-1, 2]
    assert config["split"]["max_unknown_fraction"] == 0.5
    assert config["merge"]["exports"] == ["npy"]
    assert config["plan"]["token_budget"] == 2048
    config["embed"]["layers"], config["split"]["max_unknown_fraction"] = [-1], 0.9
    config["merge"]["exports"], config["plan"]["token_budget"] = [], 4096
    assert config == yaml.safe_load(
        (shipped(SNAKEFILE).parents[1] / "config/config.yaml").read_text()
    )


@pytest.mark.parametrize(
    "option", [("--dtype", "float64"), ("--token-budget", "2"), ("--colour", 1)]
)
def test_wrong_values_are_refused_before_anything_is_written(run, option):
    with pytest.raises(Exception, match=r"(?i)no such option|is not") as caught:
        run("a.faa", "-o", "out", "--model", "demo", *option)
    assert caught.value.exit_code == 2
    assert not Path("out").exists()


def test_paths_mean_the_same_in_the_working_directory(run, tmp_path):
    Path("mine.pt").write_bytes(b"")
    run(
        *("a.faa", "-o", "out", "--model", "mine.pt", "--cache-dir", "cache"),
        *("--store", "mine", "--store", "/shared"),
    )
    assert rows() == ["sample\tfasta", f"a\t{tmp_path}/a.faa"]
    assert written()["model"] == f"{tmp_path}/mine.pt"
    assert written()["cache_dir"] == f"{tmp_path}/cache"
    assert written()["store"] == [f"{tmp_path}/mine", "/shared"]
    Path("demo").mkdir()  # a name stays a name
    run("a.faa", "-o", "named", "--model", "demo", "--container", "docker://lab/virnucpro:1")
    assert written("named")["model"] == "demo"
    assert written("named")["container"] == "docker://lab/virnucpro:1"


def test_the_same_command_writes_the_same_bytes_and_says_nothing(run, caplog):
    run("a.faa", "-o", "out", "--model", "demo")
    before = {path: path.stat().st_mtime_ns for path in Path("out/config").iterdir()}
    caplog.clear()
    run("a.faa", "-o", "out", "--model", "demo")
    assert {path: path.stat().st_mtime_ns for path in Path("out/config").iterdir()} == before


def test_other_options_and_files_are_told_apart_by_what_changes(run, monkeypatch):
    said = []
    monkeypatch.setattr(run_module.logger, "info", lambda _format, *words: said.extend(words))
    run("a.faa", "-o", "out", "--model", "demo")
    assert said == []
    run("b.faa", "-o", "out", "--model", "demo", "--pooling", "max")
    here = os.getcwd()
    assert said == [
        "embed.pooling: mean -> max",
        f"sample added: b\t{here}/b.faa",
        f"sample left out, its results stay: a\t{here}/a.faa",
    ]


@pytest.mark.parametrize("name", ["config/config.yaml", "config/samples.tsv"])
def test_what_was_edited_by_hand_is_never_written_over_and_can_be_run(run, name):
    run("a.faa", "-o", "out", "--model", "demo")
    path = Path("out", name)
    path.write_text(path.read_text() + "# mine\n")
    with pytest.raises(InputError, match="changed by hand"):
        run("b.faa", "-o", "out", "--model", "demo")
    assert path.read_text().endswith("# mine\n")
    assert "snakemake" in run("-o", "out")
    assert path.read_text().endswith("# mine\n")


def test_anothers_configuration_is_not_written_over(run):
    Path("config").mkdir()
    Path("config/config.yaml").write_text("model: demo\n")
    with pytest.raises(InputError, match="changed by hand"):
        run("a.faa", "-o", ".", "--model", "demo")
    assert Path("config/config.yaml").read_text() == "model: demo\n"
    assert not Path("config/samples.tsv").exists()


def test_nobody_gets_random_weights_without_asking(run):
    with pytest.raises(InputError, match="no --model is given"):
        run("a.faa", "-o", "out")
    run("--example", "-o", "out")
    assert written()["model"] == "demo"
    assert rows()[1].startswith("phage_lambda\t/")


def test_without_fasta_files_a_folder_has_to_be_there_and_options_have_no_place(run):
    with pytest.raises(InputError, match="out has no config"):
        run("-o", "out")
    run("a.faa", "-o", "out", "--model", "demo")
    with pytest.raises(InputError, match="options are given, but no file"):
        run("-o", "out", "--model", "demo")


# ---- samples ------------------------------------------------------------------------------------


def test_a_folder_becomes_one_sample_a_file_by_name(tmp_path):
    names = ("b.faa.gz", "a.fasta", "notes.txt", "c.d.FAA", ".hidden", "e.fna", "f.gbff.gz")
    for name in names:
        (tmp_path / name).write_text("")
    (tmp_path / "deeper.faa").mkdir()
    assert find_samples(find_files([tmp_path])) == {
        "a": tmp_path / "a.fasta",
        "b": tmp_path / "b.faa.gz",
        "c.d": tmp_path / "c.d.FAA",
        "e": tmp_path / "e.fna",
        "f": tmp_path / "f.gbff.gz",
    }


def test_a_folder_without_fasta_files_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(InputError, match="no file in it ends as FASTA or GenBank"):
        find_files([tmp_path])


def test_two_files_of_one_name_are_refused_and_one_file_twice_is_one(tmp_path):
    for name in ("x.faa", "X.fasta"):
        (tmp_path / name).write_text("")
    assert find_samples([tmp_path / "x.faa", tmp_path / "x.faa"]) == {"x": tmp_path / "x.faa"}
    with pytest.raises(InputError, match="would both be the sample X"):
        find_samples([tmp_path / "x.faa", tmp_path / "X.fasta"])


@pytest.mark.parametrize(
    ("name", "sample"),
    [("my proteins (2).faa", "my_proteins_2_"), ("-x", "x"), ("a.b.xz", "a.b.xz"), ("é.faa", None)],
)
def test_a_sample_is_called_by_letters_that_the_sheet_allows(tmp_path, name, sample):
    (tmp_path / name).write_text("")
    if sample is None:
        with pytest.raises(InputError, match="no letter or digit"):
            find_samples([tmp_path / name])
    else:
        assert list(find_samples([tmp_path / name])) == [sample]


# ---- the kind of input --------------------------------------------------------------------------


@pytest.fixture
def kinds(run, monkeypatch):
    """A file of each kind in the folder of the call; gives what is said of them."""
    said = []
    monkeypatch.setattr(run_module.logger, "info", lambda _format, *words: said.extend(words))
    contigs = fasta({"c1": genome(4, 1), "c2": genome(3, 2)})
    Path("contigs.fna").write_text(contigs)
    Path("contigs.faa.gz").write_bytes(gzip.compress(contigs.encode()))
    Path("phage.gbk").write_text(entry(genome(2, 3), cds("1..90")))
    Path("proteins.txt").write_text(">p\n" + "MKTAYIAKQRQISFVKSHFSRQ" * 4 + "\n")
    Path("reads.fastq").write_text("@r\nACGT\n+\nFFFF\n")
    return said


@pytest.mark.parametrize(
    ("names", "input_type", "sentence"),
    [
        (["contigs.fna"], "contigs", "contigs.fna: nucleotides, on which"),
        (["contigs.faa.gz"], "contigs", "contigs.faa.gz: nucleotides, on which"),
        (["phage.gbk", "a.faa"], "genes", "phage.gbk: GenBank, whose annotated genes"),
        (["proteins.txt", "reads.fastq"], "protein", None),  # the reads are refused later, by name
        (["a.faa"], "protein", None),  # three letters tell nothing
    ],
)
def test_what_a_file_holds_is_told_by_its_content_and_said(run, kinds, names, input_type, sentence):
    run(*names, "-o", "out", "--model", "demo")
    assert written()["input_type"] == input_type
    assert [each.startswith(sentence or "") for each in kinds] == [True] * bool(sentence)
    assert sentence is None or kinds[0].endswith(f"(input_type: {input_type})")


def test_a_given_input_type_is_taken_whatever_the_files_hold(run, kinds):
    run("contigs.fna", "proteins.txt", "-o", "out", "--model", "demo", "--input-type", "any")
    assert written()["input_type"] == "any"
    assert kinds == []


def test_files_of_several_kinds_are_refused_by_name_before_anything_is_written(run, kinds):
    with pytest.raises(InputError, match="of several kinds") as refused:
        run("phage.gbk", "contigs.fna", "proteins.txt", "-o", "out", "--model", "demo")
    for part in ("GenBank: phage.gbk", "nucleotides: contigs.fna", "proteins: proteins.txt"):
        assert part in refused.value.message
    assert not Path("out").exists()


def test_contigs_without_their_gene_finder_are_refused_before_anything_is_written(
    run, kinds, monkeypatch
):
    monkeypatch.setattr(finder, "_PROGRAMS", ("a-program-that-is-not-there",))
    with pytest.raises(InputError, match="not installed"):
        run("contigs.fna", "-o", "out", "--model", "demo")
    assert not Path("out").exists()


def test_a_contig_longer_than_what_is_read_is_still_told(tmp_path):
    path = tmp_path / "one.fna"
    path.write_text(f">c\n{genome(4, 1) * 3000}\n")
    assert path.stat().st_size > 4 << 20
    assert detect_input_type(path) == "contigs"


def test_a_damaged_archive_is_no_kind_and_left_to_the_step_that_names_it(tmp_path):
    path = tmp_path / "a.fna.gz"
    path.write_bytes(gzip.compress(b">c\nACGT\n")[:-9])
    assert detect_input_type(path) is None


# ---- the configuration --------------------------------------------------------------------------


def values(schema):
    """Values that the schema allows, of any key."""
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    if schema["type"] == "array":
        return st.lists(values(schema["items"]), unique=True)
    least = schema.get("minimum")
    return {
        "boolean": st.booleans(),
        "integer": st.integers(least, 10**12),
        "number": st.floats(least, schema.get("maximum")),
        "string": st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1),
    }[schema["type"]]


@given(st.fixed_dictionaries({}, optional={str(k): values(k.schema) for k in configuration_keys()}))
def test_a_written_configuration_is_read_as_it_was_given(given_values):
    text = config_text(given_values)
    config = yaml.safe_load(text)
    for key in configuration_keys():
        value = config
        for name in key.path:
            value = value[name]
        assert value == given_values.get(str(key), key.default)
    assert changes(text, text) == []
    assert max(map(len, (line for line in text.splitlines() if "# " in line[:4]))) < 101


def test_configurations_that_say_nothing_and_the_defaults_are_the_same():
    assert changes("", config_text({})) == []
    assert changes("embed:\n", config_text({"embed.dtype": "float16"})) == [
        "embed.dtype: auto -> float16"
    ]


# ---- what it says of the device -----------------------------------------------------------------


@pytest.mark.parametrize("size", [1000, 10**9])
def test_without_a_gpu_it_says_what_it_will_take(tmp_path, monkeypatch, size):
    monkeypatch.setattr(visible, "visible_devices", list)
    fasta = tmp_path / "a.faa"
    with fasta.open("wb") as handle:
        handle.truncate(size)
    note = run_module.cpu_note([fasta], {"model": "esm2_t33_650M_UR50D"})
    assert "no GPU is visible" in note
    assert ("about a minute on" in note) == (size == 1000)
    assert ("days on" in note) == (size == 10**9)


def test_with_a_gpu_nothing_is_said_unless_the_cpu_was_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(visible, "visible_devices", lambda: [visible.Device("GPU-1")])
    assert run_module.cpu_note([], {"model": "demo"}) is None
    assert run_module.cpu_note([], {"model": "demo", "embed.device": "cuda"}) is None
    assert "as asked" in run_module.cpu_note([], {"model": "demo", "embed.device": "cpu"})


# ---- what is shipped ----------------------------------------------------------------------------


def test_shipped_files_are_found_in_the_package_first(tmp_path, monkeypatch):
    from virnucpro.cli import shipped as module

    monkeypatch.setattr(module, "_PACKAGE", tmp_path / "virnucpro")
    with pytest.raises(module.VirnucproError, match="missing beside the package"):
        shipped(SCHEMA)
    for root in (tmp_path, tmp_path / "virnucpro" / "shipped"):
        for name in (SNAKEFILE, SCHEMA):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text("")
        assert shipped(SCHEMA) == root / SCHEMA
