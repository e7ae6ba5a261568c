"""One run of `.test` is made per session; tests look at it, dry-run over it, or change a copy."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.workflow.snakemake_runs import ROOT, snakemake


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the working directory of a finished run of `.test`; not to be changed."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    workdir.mkdir()
    shutil.copytree(ROOT / ".test" / "config", workdir / "config")
    shutil.copytree(ROOT / ".test" / "data", workdir / "data")
    run = snakemake(workdir)
    assert run.status == 0, run.text
    return workdir


@pytest.fixture
def workdir(finished: Path, tmp_path: Path) -> Path:
    """Give a copy of the finished run, time stamps and all, to change."""
    return Path(shutil.copytree(finished, tmp_path / "run", symlinks=True))


@pytest.fixture
def own_workflow(tmp_path: Path) -> Path:
    """Give a copy of the workflow, to change."""
    return Path(shutil.copytree(ROOT / "workflow", tmp_path / "workflow"))


@pytest.fixture
def fresh(tmp_path: Path) -> Callable[..., Path]:
    """Give a function that makes a working directory of a sheet, a config and FASTA files."""

    def make(sheet: str = "sample\tfasta\na\ta.faa\n", config: str = "", **files: str) -> Path:
        workdir = tmp_path / f"fresh{len(list(tmp_path.glob('fresh*')))}"
        (workdir / "config").mkdir(parents=True)
        (workdir / "config" / "samples.tsv").write_text(sheet)
        (workdir / "config" / "config.yaml").write_text(config or "{}\n")
        for name, text in {"a.faa": ">a\nMKT\n>b\nMLL\n", **files}.items():
            (workdir / name).write_text(text)
        return workdir

    return make
