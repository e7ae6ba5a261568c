"""contigs.tsv and contigs.h5ad: every contig once, and the mean over its genes."""

from pathlib import Path

import anndata
import h5py
import numpy as np
import pytest

import virnucpro.merge.contig_means as means_module
from tests.unit.genes.genomes import fasta, genome
from tests.unit.genes.samples import ContigSample
from virnucpro.errors import DataError, InputError
from virnucpro.files import read_json, write_json
from virnucpro.genes.find import genes_of_file
from virnucpro.genes.receipt import GenesParameters, beside
from virnucpro.merge.contigs import COLUMNS
from virnucpro.merge.requests import withdraw
from virnucpro.merge.sample import merge_sample
from virnucpro.sequences.alphabet import sequence_key

pytest.importorskip("pyrodigal_gv")

GOOD = genome(5, 1)
FILES = (
    {"a": GOOD, "short": "ATGAAATAA", "twin": GOOD, "protein": "MKTAYIAKQRQ", "empty": ""},
    {"long": "ACGT" * 3_000, "b": genome(3, 2), "a_1": genome(2, 3)},
)


@pytest.fixture
def make(tmp_path: Path):
    def made(files=FILES, failed=(), **options) -> ContigSample:
        found = []
        for number, contigs in enumerate(files):
            path = tmp_path / f"contigs {number}.fna"
            path.write_text(fasta(contigs) if isinstance(contigs, dict) else contigs)
            prefix = tmp_path / "genes" / str(number)
            genes_of_file(path, prefix, parameters=GenesParameters(10_000))
            found.append(beside(prefix, ".faa.gz"))
        sample = ContigSample(tmp_path / "run", files=found, **options)
        if failed:
            distinct = [residues for members in sample.members for residues in members]
            chosen = [distinct[index] for index in failed]
            sample.failed.update(dict.fromkeys(chosen, ("not_finite", "NaN")))
            for name, members in zip(sample.names, sample.members, strict=True):
                sample.write_embeddings(name, members)
        return sample

    return made


def check(sample: ContigSample) -> None:
    """Compare both files with embeddings.h5ad, row by row."""
    merged = anndata.read_h5ad(sample.output)
    means = anndata.read_h5ad(sample.root / "contigs.h5ad")
    rows = sample.table()
    of_contig = merged.obs["contig"].to_numpy()
    assert sum(int(row["embedded"]) for row in rows) == len(merged)
    assert list(means.obs["contig"]) == [row["id"] for row in rows if int(row["embedded"])]
    first = 0
    for number, row in enumerate(row for row in rows if int(row["embedded"])):
        here = slice(first, first + int(row["embedded"]))
        assert set(of_contig[here]) == {row["id"]}
        first = here.stop
        expected = np.mean(np.asarray(merged.X[here], np.float64), axis=0)
        np.testing.assert_allclose(means.X[number], expected.astype(merged.X.dtype), rtol=1e-3)
        assert means.obs["embedded"].iloc[number] == int(row["embedded"])
        assert means.obs["gc"].iloc[number] == pytest.approx(float(row["gc"]), abs=1e-6)
    assert first == len(merged)


@pytest.mark.fault(58)
def test_every_contig_is_a_row_in_the_order_of_the_input(make):
    sample = make()
    counts = sample.merge_contigs()
    rows = sample.table()
    assert list(rows[0]) == list(COLUMNS)
    assert [row["id"] for row in rows] == [name for contigs in FILES for name in contigs]
    assert [row["status"] for row in rows] == [
        *("ok", "no_genes", "ok", "invalid_letters", "empty"),
        *("too_long", "ok", "ok"),
    ]
    assert [Path(row["file"]).name for row in rows[4:6]] == ["contigs 0.fna", "contigs 1.fna"]
    assert sum(int(row["genes"]) for row in rows) == counts.read
    assert rows[0]["genes"] == rows[0]["embedded"] == rows[2]["genes"] != "0"
    assert (rows[4]["gc"], rows[4]["n_fraction"], rows[4]["coding_fraction"]) == ("", "", "")
    check(sample)
    programs = anndata.read_h5ad(sample.output).uns["virnucpro"]["contigs"]["programs"]
    assert all("pyrodigal-gv" in text for text in programs)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_genes_without_an_embedding_are_left_out_of_mean_and_count(dtype, make):
    sample = make(failed=(0, 1), dtype=dtype, layers=(6, 3))
    counts = sample.merge_contigs()
    assert counts.quarantined >= 2
    rows = sample.table()
    assert sum(int(row["genes"]) for row in rows) == counts.read
    assert sum(int(row["embedded"]) for row in rows) == counts.embedded
    check(sample)
    means = anndata.read_h5ad(sample.root / "contigs.h5ad")
    assert means.X.dtype == dtype
    assert list(means.layers) == ["layer_3"]


def test_a_contig_has_the_same_bits_whatever_stands_beside_it(make, monkeypatch, tmp_path):
    sample = make()
    sample.merge_contigs()
    whole = (sample.root / "contigs.h5ad").read_bytes()
    sample.merge_contigs()
    assert (sample.root / "contigs.h5ad").read_bytes() == whole
    means = anndata.read_h5ad(sample.root / "contigs.h5ad")
    np.testing.assert_array_equal(means["a"].X, means["twin"].X)
    # In pieces of two rows: other sums, of the same mean.
    monkeypatch.setattr(means_module, "_BLOCK_BYTES", 2 * sample.dim * 8)
    sample.merge_contigs()
    check(sample)


def test_contigs_of_one_name_have_rows_of_their_own(make):
    files = ({"a": GOOD, "b": genome(3, 2)}, {"a": genome(2, 4), "a_2": genome(2, 5)})
    sample = make(files, options={"duplicate_ids": "suffix"})
    sample.merge_contigs()
    check(sample)
    means = anndata.read_h5ad(sample.root / "contigs.h5ad")
    assert list(means.obs_names) == ["a", "b", "a_3", "a_2"]
    assert list(means.obs["contig"]) == ["a", "b", "a", "a_2"]


def test_a_sample_without_any_gene(make):
    sample = make(({"x": "ACGT"}, {}), options={"empty_samples": "keep"})
    sample.merge_contigs()
    assert [row["status"] for row in sample.table()] == ["no_genes"]
    assert anndata.read_h5ad(sample.root / "contigs.h5ad").shape == (0, 4)


def test_request_is_carried_by_both_files(make):
    sample = make()
    request = sample.root / "requests" / "results-0123456789ab.json"
    withdraw([], request, "0123456789ab")
    sample.merge_contigs(request=request)
    for path in (sample.output, sample.root / "contigs.h5ad"):
        assert b"0123456789ab" in path.read_bytes()[: 1 << 16]


def lose_a_contig(sample, rows):
    return rows[1:]


def double_a_contig(sample, rows):
    return [rows[0], *rows]


def count_an_embedding_more(sample, rows):
    return [rows[0] | {"embedded": rows[0]["embedded"] + 1}, *rows[1:]]


def swap_two_contigs(sample, rows):
    return [rows[6], *rows[1:6], rows[0], rows[7]]


def lose_a_gene(sample, rows):
    return [rows[0] | {"genes": rows[0]["genes"] - 1}, *rows[1:]]


@pytest.mark.parametrize(
    "damage",
    [lose_a_contig, double_a_contig, count_an_embedding_more, swap_two_contigs, lose_a_gene],
)
def test_a_table_that_does_not_add_up_is_an_error(damage, make, monkeypatch):
    sample = make()
    module = "virnucpro.merge.contigs.iter_contigs"
    whole = __import__("virnucpro.merge.contigs", fromlist=["x"]).iter_contigs
    monkeypatch.setattr(module, lambda counts: iter(damage(sample, list(whole(counts)))))
    with pytest.raises(DataError, match="ledger"):
        sample.merge_contigs()
    assert not sample.output.exists()


def test_genes_of_another_run_are_refused(make, tmp_path):
    sample = make()
    receipt = beside(sample.prefixes[0], ".json")
    content = read_json(receipt)
    content["files"][".faa.gz"] = "0" * 64
    write_json(receipt, content, sealed=True)
    with pytest.raises(DataError, match="ledger"):
        sample.merge_contigs()
    beside(sample.prefixes[1], ".contigs.parquet").write_bytes(b"PAR1")
    content = read_json(receipt)
    with pytest.raises(DataError):
        sample.merge_contigs()


def test_contigs_without_genes_cannot_be_asked_for(make):
    sample = make()
    with pytest.raises(InputError, match="genes"):
        merge_sample(
            shards_dir=sample.shards_dir,
            records=sample.records,
            plans_dir=sample.plans_dir,
            embeddings_dir=sample.embeddings_dir,
            output=sample.output,
            quarantine=sample.quarantine,
            contigs=sample.root / "contigs.tsv",
        )


def test_obs_of_the_genes_and_of_the_contigs_can_be_joined(make):
    sample = make()
    sample.merge_contigs()
    genes = anndata.read_h5ad(sample.output).obs
    contigs = anndata.read_h5ad(sample.root / "contigs.h5ad").obs.set_index("contig")
    joined = genes.join(contigs, on="contig", rsuffix="_of_contig")
    assert (joined["end"] <= joined["length_of_contig"]).all()
    with h5py.File(sample.output) as file:
        assert file["obs"].attrs["column-order"][-1] == "genetic_code"


def test_keys_of_genes_are_those_of_their_residues(make):
    sample = make()
    sample.merge_contigs()
    keys = set(anndata.read_h5ad(sample.output).obs["key"])
    assert keys == {sequence_key(each).hex() for members in sample.members for each in members}
