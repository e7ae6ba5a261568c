"""Contigs and GenBank files through the whole workflow."""

import csv
import json
import shutil

import anndata
import numpy as np
import pytest

from tests.unit.genes.flat_files import cds, entry
from tests.unit.genes.genomes import fasta, genome
from tests.unit.genes.test_genbank import GENE, PROTEIN
from tests.workflow.snakemake_runs import snakemake

pytestmark = pytest.mark.workflow

CONTIGS = {"a": genome(3, 1), "short": "ATGAAATAA", "b": genome(2, 2)}
CONFIG = "{input_type: contigs, merge: {contigs: mean}, embed: {device: cpu}}"


def test_contigs_from_nothing_to_means_and_again_from_the_cache(fresh):
    pytest.importorskip("pyrodigal_gv")
    sheet = "sample\tfasta\na\tc1.fna\na\tc2.fna\n"
    files = {"c1.fna": fasta(CONTIGS), "c2.fna": fasta({"c": genome(2, 3), "empty": ""})}
    workdir = fresh(sheet, CONFIG, **files)
    run = snakemake(workdir)
    assert run.status == 0, run.text
    assert run.jobs["genes"] == 2
    results = workdir / "results" / "a"
    assert f"virnucpro: a: {results / 'contigs.h5ad'}\n" in run.text
    with (results / "contigs.tsv").open(newline="") as handle:
        rows = list(csv.DictReader(handle, delimiter="\t"))
    assert [row["id"] for row in rows] == ["a", "short", "b", "c", "empty"]
    assert [row["file"] for row in rows[::4]] == ["c1.fna", "c2.fna"]
    genes = anndata.read_h5ad(results / "embeddings.h5ad")
    means = anndata.read_h5ad(results / "contigs.h5ad")
    assert list(means.obs_names) == ["a", "b", "c"]
    for name in means.obs_names:
        expected = genes[genes.obs["contig"] == name].X.astype(np.float64).mean(axis=0)
        np.testing.assert_array_equal(means[name].X[0], expected.astype(np.float32))
    assert "Nothing to be done" in snakemake(workdir).text
    before = {name: (results / name).read_bytes() for name in ("contigs.tsv", "contigs.h5ad")}
    shutil.rmtree(workdir / "results")
    again = snakemake(workdir)
    assert again.status == 0, again.text
    assert {name: (results / name).read_bytes() for name in before} == before
    for log in (workdir / "logs" / "genes").rglob("*.log"):
        assert "genes cache hit" in log.read_text()


def test_genbank_files_and_their_pseudogenes(fresh):
    features = (cds("1..90", 'product="portal"'), cds("1..90", "pseudo"))
    workdir = fresh(
        "sample\tfasta\na\tphage.gbk\n",
        "{input_type: genes, embed: {device: cpu}}",
        **{"phage.gbk": entry(GENE, *features, name="phage")},
    )
    run = snakemake(workdir)
    assert run.status == 0, run.text
    obs = anndata.read_h5ad(workdir / "results/a/embeddings.h5ad").obs
    assert list(obs[["contig", "product", "length"]].itertuples(name=None)) == [
        ("phage_1", "phage", "portal", len(PROTEIN))
    ]
    assert "phage_2" in (workdir / "results/a/quarantine.tsv").read_text()
    assert not (workdir / "results/a/contigs.tsv").exists()


def test_means_without_contigs_are_refused_when_the_workflow_is_read(fresh):
    run = snakemake(fresh(config="merge: {contigs: mean}"), "--dry-run")
    assert run.status == 1
    assert "only contigs have means" in run.text
    assert not run.jobs


def test_damaged_genes_are_found_again_and_never_stop_a_dry_run(fresh):
    workdir = fresh("sample\tfasta\na\tc.fna\n", CONFIG, **{"c.fna": fasta(CONTIGS)})
    genes = "results/a/genes"
    first = snakemake(workdir, "--dry-run").text
    name = next(word for word in first.split() if word.startswith(genes)).split("/")[3]
    (workdir / genes / name).mkdir(parents=True)
    (workdir / genes / name / "0.json").write_text(json.dumps({"seal": "broken"}))
    run = snakemake(workdir, "--dry-run")
    assert run.status == 0, run.text
    assert "is damaged: a gets its genes found again, into another folder" in run.text
    assert f"{genes}/{name}-2/0.faa.gz" in run.text
