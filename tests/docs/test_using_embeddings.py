"""The code of docs/using_embeddings.md runs as it stands there."""

import runpy
from pathlib import Path

import anndata
import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from tests.unit.genes.samples import ContigSample, GeneSample
from tests.unit.samples import Sample, random_records
from virnucpro.genes.find import genes_of_file
from virnucpro.genes.receipt import GenesParameters, beside

pytest.importorskip("sklearn")
pytest.importorskip("pyrodigal_gv")
ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "using_embeddings.md"
SECTIONS = {
    section.partition("\n")[0]: section.partition("```python\n")[2].partition("```")[0]
    for section in PAGE.read_text().split("\n## ")
    if "```python" in section
}
MAKE_CONTIGS = SECTIONS.pop("Results to try it on")
MANY = {"dim": 32, "options": {"shard_tokens": 100_000}}
GENOMAD = """\
seq_name\tlength\tvirus_score\ttaxonomy
lambda_0\t8000\t0.9871\tViruses;Duplodnaviria;Heunggongvirae;Uroviricota;Caudoviricetes
lambda_8000|provirus_12_3000\t2989\t0.9102\tViruses;Duplodnaviria
lambda_8000|provirus_4000_7999\t4000\t0.9543\tViruses;Duplodnaviria;Heunggongvirae
lambda_16000\t8000\t0.7110\tUnclassified
"""


def run_code(code, workdir, monkeypatch):
    """Run a piece of the page in a folder; returns its names."""
    monkeypatch.chdir(workdir)
    script = workdir / "section.py"
    script.write_text(code)
    return runpy.run_path(str(script))


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A working directory with the results that the page names; embeddings are made up."""
    root = tmp_path_factory.mktemp("run")
    (root / "example").symlink_to(ROOT / "example")
    folder = root / "results" / "phage_lambda"
    sample = Sample(folder, random_records(120), dim=32, extras=("residues",))
    sample.merge(
        residues=folder / "residues.h5",
        parquet=folder / "embeddings.parquet",
        npy=folder / "embeddings.npy",
        uniprot_h5=folder / "embeddings.h5",
        fair_esm=folder / "fair_esm",
    )
    genbank = ROOT / "example" / "lambda_genes.gbk"
    GeneSample(root / "results" / "lambda_genes", files=[genbank], **MANY).merge()
    with pytest.MonkeyPatch.context() as monkeypatch:
        run_code(MAKE_CONTIGS, root, monkeypatch)
    _, bases, *_ = (root / "lambda_contigs.fna").read_text().splitlines()
    with (root / "lambda_contigs.fna").open("a") as fasta:
        fasta.write(f">twin\n{bases}\n")
    prefix = root / "genes" / "0"
    genes_of_file(root / "lambda_contigs.fna", prefix, parameters=GenesParameters())
    genes = [beside(prefix, ".faa.gz")]
    ContigSample(root / "results" / "lambda_contigs", files=genes, **MANY).merge_contigs()
    table = root / "genomad/lambda_contigs_summary/lambda_contigs_virus_summary.tsv"
    table.parent.mkdir(parents=True)
    table.write_text(GENOMAD)
    return root


def test_each_piece_of_code_is_short():
    assert len(SECTIONS) == 8
    for code in SECTIONS.values():
        assert len(code.splitlines()) <= 14


@pytest.mark.parametrize("title", SECTIONS)
def test_code_of_the_page_runs(title, workdir, monkeypatch, capsys):
    run_code(SECTIONS[title], workdir, monkeypatch)
    assert capsys.readouterr().out.strip()


def test_the_neighbours_of_a_gene_begin_with_itself(workdir, monkeypatch, capsys):
    run_code(SECTIONS["Nearest neighbours of a gene"], workdir, monkeypatch)
    first, *others = capsys.readouterr().out.splitlines()
    assert first == "1.0000 lambda_cI 37227 37940 repressor"
    assert len(others) == 5


def test_each_unknown_gene_stands_beside_a_known_one(workdir, monkeypatch, capsys):
    names = run_code(SECTIONS["Genes of unknown function"], workdir, monkeypatch)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(names["unknown"]) == 14
    assert {line.split()[1] for line in lines} == set(names["unknown"].obs.locus_tag)
    assert "hypothetical" not in "".join(lines)
    assert [float(line.split()[0]) for line in lines] == sorted(
        (float(line.split()[0]) for line in lines), reverse=True
    )


def test_contigs_of_the_same_genes_are_one_cluster_and_others_are_apart(workdir, monkeypatch):
    contigs = run_code(SECTIONS["Clusters of contigs"], workdir, monkeypatch)["data"].obs
    assert contigs.cluster["lambda_0"] == contigs.cluster["twin"]
    assert contigs.cluster.nunique() == len(contigs) - 1 >= 5
    assert "lambda_48000" not in contigs.index  # 502 bases


def test_genomads_rows_come_to_their_contigs_and_no_row_is_doubled(workdir, monkeypatch):
    names = run_code(SECTIONS["Beside geNomad's table"], workdir, monkeypatch)
    obs, viruses = names["data"].obs, names["viruses"].obs
    means = anndata.read_h5ad(workdir / "results/lambda_contigs/contigs.h5ad")
    assert list(obs.index) == list(means.obs_names)
    assert dict(viruses.virus_score) == {"lambda_0": 0.9871, "lambda_8000": 0.9543}
    assert viruses.seq_name["lambda_8000"] == "lambda_8000|provirus_4000_7999"
    assert obs.virus_score.isna().sum() == len(obs) - 3


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
