"""The code of docs/using_embeddings.md runs as it stands there."""

import runpy
from pathlib import Path

import anndata
import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from tests.unit.samples import Sample, random_records

pytest.importorskip("sklearn")
PAGE = Path(__file__).parents[2] / "docs" / "using_embeddings.md"
SECTIONS = {
    section.partition("\n")[0]: section.partition("```python\n")[2].partition("```")[0]
    for section in PAGE.read_text().split("\n## ")
    if "```python" in section
}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A working directory with the results of a sample, as the page names it."""
    root = tmp_path_factory.mktemp("run")
    folder = root / "results" / "phage_lambda"
    sample = Sample(folder, random_records(120), dim=32, extras=("residues",))
    sample.merge(
        residues=folder / "residues.h5",
        parquet=folder / "embeddings.parquet",
        npy=folder / "embeddings.npy",
        uniprot_h5=folder / "embeddings.h5",
        fair_esm=folder / "fair_esm",
    )
    return root


def test_page_has_the_three_things():
    assert list(SECTIONS)[:3] == [
        *("Nearest neighbours of a protein", "Clusters", "A classifier on top")
    ]
    for code in SECTIONS.values():
        assert len(code.splitlines()) <= 14


@pytest.mark.parametrize("title", SECTIONS)
def test_code_of_the_page_runs(title, workdir, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(workdir)
    script = tmp_path / "section.py"
    script.write_text(SECTIONS[title])
    runpy.run_path(str(script))
    assert capsys.readouterr().out.strip()


def test_all_formats_hold_the_same_numbers(workdir):
    folder = workdir / "results" / "phage_lambda"
    data = anndata.read_h5ad(folder / "embeddings.h5ad")
    name = data.obs_names[3]
    vector = data[name].X[0]
    frame = pq.read_table(folder / "embeddings.parquet").to_pandas().set_index("id")
    np.testing.assert_array_equal(frame.embedding[name], vector)
    np.testing.assert_array_equal(np.load(folder / "embeddings.npy", mmap_mode="r")[3], vector)
    with h5py.File(folder / "embeddings.h5") as file:
        np.testing.assert_array_equal(file[name][:], vector)
    label = f"{name} {data.obs.description.iloc[3]}"
    saved = torch.load(folder / "fair_esm" / f"{label}.pt", weights_only=True)
    np.testing.assert_array_equal(saved["mean_representations"][6].numpy(), vector)
