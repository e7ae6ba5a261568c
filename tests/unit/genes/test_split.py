"""Genes through split and merge: their places stand in records.parquet and in obs."""

from pathlib import Path

import anndata
import pyarrow.parquet as pq
import pytest

from tests.unit.genes.flat_files import cds, entry
from tests.unit.genes.samples import GeneSample
from tests.unit.genes.test_genbank import BACKWARDS, GENE, PROTEIN
from virnucpro.errors import InputError
from virnucpro.merge.ledger import read_quarantine
from virnucpro.sequences.manifest import SplitParameters
from virnucpro.sequences.outputs import RECORDS_SCHEMA
from virnucpro.sequences.split import split

PLACES = ["contig", "gene", "start", "end", "strand", "partial", "genetic_code"]
TOLD = ["product", "locus_tag", "translation"]


def header(contig: str, gene: int, place: str = "1 # 90 # -1", partial: str = "00") -> str:
    return f">{contig}_{gene} # {place} # ID=1_{gene};partial={partial};genetic_code=11"


def faa(*headers: str) -> str:
    return "".join(f"{each}\nMKT{'L' * number}W*\n" for number, each in enumerate(headers))


@pytest.fixture
def make(tmp_path: Path):
    def made(*texts: str, **options) -> GeneSample:
        files = []
        for number, text in enumerate(texts):
            files.append(tmp_path / f"{number}.in")
            files[-1].write_text(text)
        return GeneSample(tmp_path / "run", files=files, options=options)

    return made


def test_places_of_genes_come_through_to_obs(make):
    sample = make(faa(header("c", 1, "5 # 19 # 1", "10"), header("c", 2), header("d_1", 1)))
    sample.merge()
    obs = anndata.read_h5ad(sample.output).obs
    assert list(obs[PLACES].itertuples(name=None)) == [
        ("c_1", "c", 1, 5, 19, 1, "10", 11),
        ("c_2", "c", 2, 1, 90, -1, "00", 11),
        ("d_1_1", "d_1", 1, 1, 90, -1, "00", 11),
    ]
    assert not set(TOLD) & set(obs.columns)
    assert pq.read_schema(sample.records).names == [*RECORDS_SCHEMA.names, *PLACES]


def test_annotations_of_genbank_come_through_beside_prodigal_and_pseudogenes_are_named(make):
    features = (
        cds("1..90", 'product="portal protein"', 'locus_tag="T1"', f'translation="{PROTEIN}"'),
        cds("1..90", "pseudo"),
        cds("complement(91..180)", "transl_table=11"),
    )
    sample = make(entry(GENE + BACKWARDS, *features, name="g"), faa(header("c", 1)))
    counts = sample.merge()
    assert (counts.read, counts.embedded, counts.quarantined) == (4, 3, 1)
    obs = anndata.read_h5ad(sample.output).obs
    assert list(obs[[*PLACES, *TOLD]].itertuples(name=None)) == [
        ("g_1", "g", 1, 1, 90, 1, "00", 1, "portal protein", "T1", "given"),
        ("g_3", "g", 3, 91, 180, -1, "00", 11, "", "", "made"),
        ("c_1", "c", 1, 1, 90, -1, "00", 11, "", "", ""),
    ]
    (refused,) = read_quarantine(sample.quarantine)
    line = features[0].count("\n") + 6
    assert (refused.id, refused.reason, refused.line) == ("g_2", "pseudo", str(line))


def test_exports_have_the_places(make, tmp_path):
    sample = make(faa(header("c", 1), header("c", 2)))
    parquet, npy = tmp_path / "e.parquet", tmp_path / "e.npy"
    sample.merge(parquet=parquet, npy=npy)
    rows = pq.read_table(parquet).to_pylist()
    assert [(row["contig"], row["gene"], row["strand"]) for row in rows] == [
        ("c", 1, -1),
        ("c", 2, -1),
    ]
    head, first, _ = (tmp_path / "e.tsv").read_text().splitlines()
    cells = dict(zip(head.split("\t"), first.split("\t"), strict=True))
    assert (cells["contig"], cells["start"], cells["end"]) == ("c", "1", "90")


@pytest.mark.fault(59)
@pytest.mark.parametrize(
    ("headers", "line", "first"),
    [
        ([header("c", 1), header("d", 1), header("c", 2)], 5, 1),
        ([header("c", 1), header("c", 3), header("c", 2)], 5, 1),
        ([header("a", 1), header("c", 2), header("c", 3), header("d", 1), header("c", 1)], 9, 3),
    ],
)
def test_genes_of_a_contig_that_are_not_side_by_side_are_refused(headers, line, first, make):
    with pytest.raises(InputError) as refused:
        make(faa(*headers))
    assert refused.value.line == line
    assert f"from line {first} on" in refused.value.message


def test_contigs_of_one_name_are_told_apart_with_suffixes(make):
    sample = make(faa(header("c", 1), header("d", 1), header("c", 1)), duplicate_ids="suffix")
    assert pq.read_table(sample.records)["id"].to_pylist() == ["c_1", "d_1", "c_1_2"]


def test_other_input_has_no_columns_of_genes(tmp_path):
    fasta = tmp_path / "a.faa"
    fasta.write_text(faa(header("c", 1)))
    records = tmp_path / "records.parquet"
    split(
        [fasta],
        sample="s",
        shards_dir=tmp_path / "shards",
        records=records,
        parameters=SplitParameters(),
    )
    assert pq.read_schema(records).names == RECORDS_SCHEMA.names


def test_nucleotides_and_genbank_given_as_proteins_are_told_what_to_set(tmp_path):
    for text, key in ((f">c\n{GENE * 3}\n", "contigs"), (entry(GENE, cds("1..90")), "genes")):
        path = tmp_path / "a.in"
        path.write_text(text)
        with pytest.raises(InputError) as refused:
            split(
                [path],
                sample="s",
                shards_dir=tmp_path / "shards",
                records=tmp_path / "records.parquet",
                parameters=SplitParameters(),
            )
        assert f"input_type: {key}" in refused.value.hint
