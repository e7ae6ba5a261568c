"""The ways in: a wheel, a deployed workflow, a module of another workflow, conda, an image.

The long tests install everything from the index, as a new user does.
"""

import ast
import os
import re
import shlex
import shutil
import site
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import anndata
import pytest
import yaml
from snakemake import sourcecache

from tests.workflow.conda_stand_in import install_conda, requirements
from tests.workflow.snakemake_runs import ROOT, Run, snakemake

pytestmark = pytest.mark.workflow

SMALL = "".join(f">protein_{number}\nMKVLA{'ACDEFGH'[number]}GHIW\n" for number in range(5))


def call(*command, cwd, path="/usr/bin:/bin", **environment) -> Run:
    """Call a command as in a new shell: nothing of this checkout, little on PATH."""
    inherited = {
        key: value
        for key, value in os.environ.items()
        if key not in ("PYTHONPATH", "VIRTUAL_ENV", "VIRNUCPRO_SOURCE")
    }
    done = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env={**inherited, "PATH": path, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return Run(done.returncode, done.stdout)


def new_venv(folder: Path) -> Path:
    """Make a virtual environment, and give its programs."""
    subprocess.check_call([sys.executable, "-m", "venv", str(folder)])
    return folder / "bin"


@pytest.fixture(scope="session")
def built(tmp_path_factory) -> Path:
    """Build sdist and wheel; the wheel from the sdist alone, as an index may do."""
    folder = tmp_path_factory.mktemp("built")
    build = [sys.executable, "-m", "hatchling", "build", "-d", str(folder)]
    subprocess.check_call([*build, "-t", "sdist"], cwd=ROOT, stdout=subprocess.DEVNULL)
    (sdist,) = folder.glob("*.tar.gz")
    unpacked = folder / "unpacked"
    unpacked.mkdir()
    subprocess.check_call(["tar", "-xf", str(sdist), "-C", str(unpacked)])
    (source,) = unpacked.iterdir()
    subprocess.check_call([*build, "-t", "wheel"], cwd=source, stdout=subprocess.DEVNULL)
    return folder


@pytest.fixture(scope="session")
def wheel(built) -> Path:
    (wheel,) = built.glob("*.whl")
    return wheel


def shipped_files() -> set[str]:
    """Everything that a workflow needs, and the example."""
    files = [path for path in (ROOT / "workflow").rglob("*") if path.is_file()]
    names = {str(path.relative_to(ROOT)) for path in files if "__pycache__" not in path.parts}
    return names | {"config/config.yaml", "config/README.md", "example/phage_lambda.faa"}


def test_the_wheel_carries_the_workflow_as_it_is(wheel):
    with zipfile.ZipFile(wheel) as archive:
        shipped = {name: archive.read(name) for name in archive.namelist() if "/shipped/" in name}
    for name in shipped_files():
        assert shipped[f"virnucpro/shipped/{name}"] == (ROOT / name).read_bytes()
    assert "virnucpro/shipped/workflow/profiles/default/profile.yaml" in shipped
    assert "virnucpro/shipped/workflow/envs/virnucpro.post-deploy.sh" in shipped


@pytest.fixture(scope="session")
def programs(wheel, tmp_path_factory) -> Path:
    """Give the programs of an environment with the wheel, which borrows this one's libraries."""
    programs = new_venv(tmp_path_factory.mktemp("wheel") / "venv")
    install = [programs / "python", "-m", "pip", "install", "-q", "--no-deps", wheel]
    subprocess.check_call(list(map(str, install)))
    (own,) = (programs.parent / "lib").glob("python*/site-packages")
    (own / "borrowed.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    return programs


def test_one_command_embeds_with_the_wheel_alone_and_again_does_what_is_left(programs, tmp_path):
    (tmp_path / "proteins.faa").write_text(SMALL)
    command = [programs / "virnucpro", "run", "proteins.faa", "-o", "out", "--model", "demo"]
    run = call(*command, "--device", "cpu", cwd=tmp_path)
    assert run.status == 0, run.text
    assert f"Snakefile: {programs.parent}" in run.text
    assert "as asked: this will compute on the CPU" in run.text
    result = tmp_path / "out" / "results" / "proteins" / "embeddings.h5ad"
    assert f"virnucpro: proteins: {result}\n" in run.text
    assert anndata.read_h5ad(result).shape == (5, 320)
    run = call(*command, "--device", "cpu", cwd=tmp_path)
    assert "Nothing to be done" in run.text
    assert run.jobs == {}
    run = call(*command, "--device", "cpu", "--exports", "npy", "--", "-n", cwd=tmp_path)
    assert "merge.exports: [] -> ['npy']" in run.text
    assert "merge" in run.jobs
    assert not {"split", "plan", "embed", "fetch_model"} & set(run.jobs)


def test_a_plan_is_had_by_one_command_with_its_gpu_hours(programs, tmp_path):
    folder = tmp_path / "fastas"
    folder.mkdir()
    for name in ("a.faa", "b.fasta"):
        (folder / name).write_text(SMALL)
    model = "esm2_t33_650M_UR50D"
    command = ["run", "fastas", "-o", "out", "--model", model, "--plan-only"]
    run = call(programs / "virnucpro", *command, cwd=tmp_path)
    assert run.status == 0, run.text
    assert run.jobs["plan_report"] == 2
    assert re.search(rf"{model} on NVIDIA H100.* GPU hours in 1 job; wall time: 1 GPU", run.text)
    assert not (tmp_path / "out" / "resources").exists()


# ---- deployed, and as a module ------------------------------------------------------------------

MODULE = """
module virnucpro:
    snakefile: "{snakefile}"
    config: config["virnucpro"]
    prefix: "embedded"

use rule * from virnucpro as virnucpro_*

rule all:
    default_target: True
    input:
        rules.virnucpro_all.input,
        "count.txt",

rule split:  # has the name of one of the module's
    input: "embedded/results/a/embeddings.npy"
    output: "count.txt"
    shell: "wc -c < {{input}} > {{output}}"
"""


@pytest.fixture
def parent(tmp_path) -> Path:
    """Give a folder with a workflow of its own, which has this one as a module."""
    folder = tmp_path / "parent"
    (folder / "workflow").mkdir(parents=True)
    snakefile = MODULE.format(snakefile=ROOT / "workflow" / "Snakefile")
    (folder / "workflow" / "Snakefile").write_text(snakefile)
    (folder / "a.faa").write_text(SMALL)
    (folder / "samples.tsv").write_text("sample\tfasta\na\ta.faa\n")
    return folder


def run_parent(folder: Path, *arguments: str, **values) -> Run:
    values = {"samples": "samples.tsv", "merge": {"exports": ["npy"]}, **values}
    (folder / "mine.yaml").write_text(yaml.safe_dump({"virnucpro": values}))
    return snakemake(
        folder, "--configfile", str(folder / "mine.yaml"), *arguments, workflow=folder / "workflow"
    )


def test_it_runs_beside_the_rules_of_another_workflow_under_a_prefix(parent):
    run = run_parent(parent)
    assert run.status == 0, run.text
    result = parent / "embedded" / "results" / "a" / "embeddings.h5ad"
    assert anndata.read_h5ad(result).shape == (5, 320)
    assert int((parent / "count.txt").read_text()) > 5 * 320 * 4
    made = {path.name for path in parent.iterdir()}
    assert made == {
        *("workflow", "a.faa", "samples.tsv", "mine.yaml", "count.txt", "embedded"),
        *(".snakemake", ".cache"),
    }
    assert run_parent(parent, "--dry-run").jobs == {}
    run = run_parent(parent, "--dry-run", embed={"pooling": "max"})
    assert "2 folders and files of earlier" in run.text  # embeddings and budget
    assert run.jobs["virnucpro_embed"] == run.jobs["virnucpro_merge"] == 1
    assert not {"virnucpro_split", "virnucpro_plan", "virnucpro_fetch_model"} & set(run.jobs)


def test_a_module_is_told_which_options_only_the_profile_has(parent):
    text = run_parent(parent, "--dry-run").text
    assert text.count("no profile gives these options") == 1
    for option in ("--resources gpu=1", "--rerun-triggers mtime input", "--rerun-incomplete"):
        assert option in text
    given = ["--rerun-incomplete", "--rerun-triggers", "mtime", "input", "--resources", "gpu=1"]
    assert "no profile gives" not in run_parent(parent, "--dry-run", *given).text
    shutil.copytree(ROOT / "profiles", parent / "workflow" / "profiles")
    assert "no profile gives" not in run_parent(parent, "--dry-run").text


@pytest.fixture
def repository(tmp_path) -> dict[str, str]:
    """Make a repository of the workflow with a tag; git takes it for the one at github.com."""
    folder = tmp_path / "hosted" / "lab" / "virnucpro"
    for name in ("workflow", "config", "profiles", "virnucpro"):
        shutil.copytree(ROOT / name, folder / name, symlinks=True)
    for name in ("LICENSE", "README.md", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    git = ["git", "-C", str(folder), "-c", "user.name=n", "-c", "user.email=e@example.org"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "x"], ["tag", "v0.1.0"]):
        subprocess.check_call([*git, *words])
    return {
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.file://{tmp_path}/hosted/.insteadOf",
        "GIT_CONFIG_VALUE_0": "https://github.com/",
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }


def test_snakedeploy_gives_a_folder_that_runs_with_the_shipped_profile(repository, tmp_path):
    programs = Path(sys.executable).parent
    source = "https://github.com/lab/virnucpro"
    deploy = [programs / "snakedeploy", "deploy-workflow", source, "mine", "--tag", "v0.1.0"]
    run = call(*deploy, cwd=tmp_path, **repository)
    assert run.status == 0, run.text
    folder = tmp_path / "mine"
    assert (folder / "profiles" / "slurm" / "profile.yaml").is_file()
    (folder / "a.faa").write_text(SMALL)
    (folder / "config" / "samples.tsv").write_text("sample\tfasta\na\ta.faa\n")
    run = call(programs / "snakemake", "--cores", "2", cwd=folder, **repository)
    assert run.status == 0, run.text
    assert "no profile gives" not in run.text
    assert "Using workflow specific profile profiles/default" in run.text
    assert anndata.read_h5ad(folder / "results/a/embeddings.h5ad").shape == (5, 320)
    again = call(programs / "snakemake", "--cores", "2", cwd=folder, **repository)
    assert "Nothing to be done" in again.text


def package_source(rules) -> str:
    """Call the function of config.smk, which is Python, for rules that come from there."""
    text = (ROOT / "workflow" / "rules" / "config.smk").read_text()
    (function,) = (
        node
        for node in ast.parse(text).body
        if isinstance(node, ast.FunctionDef) and node.name == "package_source"
    )
    names = {"workflow": SimpleNamespace(current_basedir=rules), "Path": Path, "os": os}
    names["VERSION"] = "0.1.0"
    exec(ast.unparse(function), names)  # noqa: S102
    return names["package_source"]()


def test_conda_installs_the_package_from_where_the_workflow_comes(tmp_path):
    place = {"repo": "lab/virnucpro", "path": "workflow/rules"}
    cases = {
        sourcecache.GithubFile(**place, tag="v1"): "git+https://github.com/lab/virnucpro@v1",
        sourcecache.GitlabFile(**place, commit="ab1"): "git+https://gitlab.com/lab/virnucpro@ab1",
        sourcecache.LocalGitFile("/r", "workflow/rules", tag="v1"): "git+file:///r@v1",
        sourcecache.LocalSourceFile(f"{ROOT}/workflow/rules"): str(ROOT),
        sourcecache.LocalSourceFile(f"{tmp_path}/workflow/rules"): "virnucpro==0.1.0",
        sourcecache.GenericSourceFile("https://x.org/workflow/rules"): "virnucpro==0.1.0",
    }
    for rules, source in cases.items():
        assert package_source(rules) == source


# ---- from the index -----------------------------------------------------------------------------


@pytest.mark.long
def test_rules_run_in_an_environment_of_exactly_the_conda_list(fresh, tmp_path):
    workdir = fresh(a=SMALL)
    conda = install_conda(tmp_path / "conda")
    command = [sys.executable, "-m", "snakemake", "--snakefile", ROOT / "workflow" / "Snakefile"]
    options = ["--directory", workdir, "--cores", "2", "--sdm", "conda"]
    run = call(*command, *options, cwd=tmp_path, path=f"{conda}:/usr/bin:/bin")
    assert run.status == 0, run.text
    assert anndata.read_h5ad(workdir / "results/a/embeddings.h5ad").shape == (2, 320)
    (python,) = (workdir / ".snakemake" / "conda").glob("*/bin/python")
    where = "import virnucpro; print(virnucpro.__file__)"
    assert str(workdir) in call(python, "-c", where, cwd=tmp_path).text
    assert call(python, "-c", "import snakemake", cwd=tmp_path).status == 1  # nothing is borrowed


def test_the_conda_list_is_read_as_requirements():
    listed = requirements(ROOT / "workflow" / "envs" / "virnucpro.yaml")
    assert "torch==2.13.0" in listed
    assert "matplotlib>=3.8" in listed
    assert "pip" not in listed


def container_steps() -> list[list[str]]:
    """Give the words of each instruction of the Containerfile."""
    text = (ROOT / "Containerfile").read_text()
    return [shlex.split(line) for line in text.splitlines() if line and line[0] not in "# "]


@pytest.mark.long
def test_the_steps_of_the_image_give_a_command_that_embeds(tmp_path):
    """The base image and its system packages apart, which need a registry of images."""
    programs = new_venv(tmp_path / "venv")
    places = {"/source": tmp_path / "source", "/wheel": tmp_path / "wheel"}
    ignored = (ROOT / ".containerignore").read_text().split()
    shutil.copytree(ROOT, places["/source"], ignore=shutil.ignore_patterns(*ignored))
    entry = []
    for name, *words in container_steps():
        if name == "ENTRYPOINT":
            entry = [word.strip("[],") for word in words]
        elif name == "RUN" and words[0] == "python":
            line = " ".join(words)
            for inside, outside in places.items():
                line = line.replace(inside, str(outside))
            line = line.replace("python", str(programs / "python"), 1)
            subprocess.check_call(["bash", "-euc", line], env=os.environ | {"PIP_NO_COMPILE": "1"})
        elif name == "COPY" and words[-1] == "/wheel/":
            shutil.copy(ROOT / words[0], places["/wheel"])
        elif name == "RUN":
            assert words[0] == "apt-get"
        else:
            assert (name, *words) in {
                ("FROM", "docker.io/library/python:3.11-slim", "AS", "wheel"),
                ("FROM", "docker.io/library/python:3.11-slim"),
                ("COPY", ".", "/source"),
                ("COPY", "--from=wheel", "/wheel", "/wheel"),
            }
    (tmp_path / "a.faa").write_text(SMALL)
    command = [programs / entry[0], "run", "a.faa", "-o", "out", "--model", "demo"]
    run = call(*command, cwd=tmp_path)
    assert run.status == 0, run.text
    assert (tmp_path / "out" / "results" / "a" / "embeddings.h5ad").is_file()


def test_an_image_is_what_the_rules_run_in_where_one_is_configured(fresh):
    workdir = fresh(config="container: mine.sif\n")
    (workdir / "mine.sif").write_text("")
    programs = workdir.parent / "bin"
    programs.mkdir()
    said = workdir.parent / "said"
    (programs / "apptainer").write_text(
        "#!/bin/bash\n"
        '[ "$1" = --version ] && { echo "apptainer version 1.4.0"; exit; }\n'
        f'echo "$@" >> {said}; exit 1\n'
    )
    (programs / "apptainer").chmod(0o755)
    command = [sys.executable, "-m", "snakemake", "--snakefile", ROOT / "workflow" / "Snakefile"]
    options = ["--directory", workdir, "--cores", "2", "--sdm", "apptainer"]
    arguments = ["--until", "split"]  # --nv is in the profile
    call(*command, *options, *arguments, cwd=workdir, path=f"{programs}:/usr/bin:/bin")
    (line,) = {line for line in said.read_text().splitlines() if "virnucpro split" in line}
    assert re.match(r"exec .*--nv .*mine\.sif ", line), line
