import gzip
import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.unit.genes.genomes import fasta, genome
from virnucpro.errors import DataError, InputError, VirnucproError
from virnucpro.files import read_json
from virnucpro.genes.contigs import CONTIGS_SCHEMA
from virnucpro.genes.find import genes_of_file
from virnucpro.genes.read import read_genes
from virnucpro.genes.receipt import SUFFIXES, GenesParameters, beside, read_receipt
from virnucpro.genes.workers import in_order

pyrodigal_gv = pytest.importorskip("pyrodigal_gv")

GENOMES = {f"c{number}|a:b;partial=11;": genome(4 + number, number) for number in range(6)}


def find(folder: Path, text: str | bytes, name: str = "0", **options):
    path = folder / "contigs.fna"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    options.setdefault("parameters", GenesParameters(options.pop("max_contig_bases", 100_000)))
    return genes_of_file(path, folder / name, **options)


def content(folder: Path, name: str = "0") -> dict[str, bytes]:
    return {each: beside(folder / name, each).read_bytes() for each in (*SUFFIXES, ".json")}


def rows(folder: Path, name: str = "0") -> list[dict]:
    return pq.read_table(beside(folder / name, ".contigs.parquet")).to_pylist()


def check_against_the_library(path: Path, prefix: Path) -> int:
    """Compare what was written with what pyrodigal-gv's own API finds; return the genes."""
    finder = pyrodigal_gv.ViralGeneFinder(meta=True)
    records = list(read_genes(beside(prefix, ".faa.gz")))
    found = iter(records)
    table = pq.read_table(beside(prefix, ".contigs.parquet")).to_pylist()
    contigs = [part.split("\n", 1) for part in path.read_text().split(">")[1:]]
    assert [row["id"] for row in table] == [head.split()[0] for head, _ in contigs]
    for row, (_, body) in zip(table, contigs, strict=True):
        bases = body.replace("\n", "").upper()
        covered = set()
        expected = finder.find_genes(bases.encode())
        for index, gene in enumerate(expected, 1):
            record = next(found)
            assert record.id == f"{row['id']}_{index}"
            assert record.residues.decode() == gene.translate().rstrip("*")
            place = (record.gene.start, record.gene.end, record.gene.strand)
            assert place == (gene.begin, gene.end, gene.strand)
            partial = f"{gene.partial_begin:d}{gene.partial_end:d}"
            assert (record.gene.partial, record.gene.genetic_code) == (
                partial,
                gene.translation_table,
            )
            covered |= set(range(gene.begin, gene.end + 1))
        assert row["genes"] == len(expected)
        assert row["length"] == len(bases)
        assert row["coding_fraction"] == pytest.approx(len(covered) / len(bases))
        plain = [letter for letter in bases if letter in "ACGT"]
        assert row["gc"] == pytest.approx(sum(each in "GC" for each in plain) / len(plain))
    assert next(found, None) is None
    return len(records)


def test_genes_are_those_of_the_library_letter_by_letter(tmp_path):
    receipt = find(tmp_path, fasta(GENOMES))
    count = check_against_the_library(tmp_path / "contigs.fna", tmp_path / "0")
    assert count == receipt.genes > 20
    assert sum(row["partial"] for row in rows(tmp_path)) > 0
    assert receipt == read_receipt(tmp_path / "0")


def test_places_in_gff_are_those_of_the_proteins(tmp_path):
    find(tmp_path, fasta(GENOMES))
    lines = gzip.decompress(content(tmp_path)[".gff.gz"]).decode().splitlines()
    assert lines[0] == "##gff-version 3"
    cells = [line.split("\t") for line in lines[1:]]
    found = [(int(each[3]), int(each[4]), {"+": 1, "-": -1}[each[6]]) for each in cells]
    genes = [record.gene for record in read_genes(beside(tmp_path / "0", ".faa.gz"))]
    assert found == [(gene.start, gene.end, gene.strand) for gene in genes]
    assert cells[0][0] == "c0|a:b%3Bpartial%3D11%3B"
    assert len({each[8].split(";")[1] for each in cells}) == len(cells)  # ids


def test_any_number_of_processes_gives_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr("virnucpro.genes.find._BATCH_BASES", 1_000)
    find(tmp_path, fasta(GENOMES))
    one = content(tmp_path)
    find(tmp_path, fasta(GENOMES), "2", processes=2)
    assert content(tmp_path, "2") == one


@pytest.mark.fault(58)
def test_one_contig_of_each_broken_kind_is_a_row_and_harms_no_other(tmp_path):
    good = GENOMES["c1|a:b;partial=11;"]
    contigs = {
        "good": good,
        "rna_with_gaps": good.lower().replace("t", "u")[:300] + "--..-" + good[300:],
        "short": "ATGAAATAA",
        "protein": "MKTAYIAKQRQISFVKSHFSRQ",
        "empty": "",
        "gaps": "---",
        "long": "ACGT" * 1_000,
        "text": "# here was a genome",
        "ambiguous": good[:600] + "RYSWKMBDHVN" + good[611:],
        "last": good,
    }
    receipt = find(tmp_path, fasta(contigs), max_contig_bases=3_900)
    table = rows(tmp_path)
    assert [row["id"] for row in table] == list(contigs)
    assert [row["line"] for row in table] == [2 * number + 1 for number in range(len(contigs))]
    assert [row["status"] for row in table] == [
        *("ok", "ok", "no_genes", "invalid_letters", "empty", "empty", "too_long"),
        *("invalid_letters", "ok", "ok"),
    ]
    assert [table[index]["length"] for index in (1, 2, 4, 6)] == [len(good), 9, 0, 4_000]
    records = list(read_genes(beside(tmp_path / "0", ".faa.gz")))
    assert receipt.genes == len(records) == sum(row["genes"] for row in table)
    by_contig = {name: [] for name in contigs}
    for record in records:
        by_contig[record.gene.contig].append((record.residues, record.gene.start))
    assert by_contig["good"] == by_contig["rna_with_gaps"] == by_contig["last"] != []
    assert table[8]["n_fraction"] == pytest.approx(1 / len(good))
    assert receipt.changes == {
        "upper_case": 300,
        "u_to_t": good[:300].count("T"),
        "gap_removed": 5,
        "ambiguous": 11,
    }


def test_a_file_of_proteins_is_refused_with_what_to_set(tmp_path):
    with pytest.raises(InputError) as refused:
        find(tmp_path, ">a\nMKTAYIAKQRQISFVKSHFSRQ\n>b\nMLLK\n")
    assert "input_type: protein" in refused.value.hint
    assert not beside(tmp_path / "0", ".json").exists()


@pytest.mark.parametrize("text", ["", ">a\nACGTACGT\n"])
def test_nothing_found_is_no_error(text, tmp_path):
    assert find(tmp_path, text).genes == 0
    assert list(read_genes(beside(tmp_path / "0", ".faa.gz"))) == []
    assert pq.read_schema(beside(tmp_path / "0", ".contigs.parquet")) == CONTIGS_SCHEMA


def test_the_cache_gives_the_same_bytes_without_finding_again(tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    find(tmp_path, fasta(GENOMES), cache_dir=cache)
    first = content(tmp_path)
    monkeypatch.setattr("virnucpro.genes.find._find", None)
    find(tmp_path, fasta(GENOMES), "again", cache_dir=cache)
    assert content(tmp_path, "again") == first
    with pytest.raises(TypeError):  # other content, other parameters
        find(tmp_path, fasta(GENOMES) + ">x\nACGT\n", "other", cache_dir=cache)
    with pytest.raises(TypeError):
        find(tmp_path, fasta(GENOMES), "other", cache_dir=cache, max_contig_bases=500)


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".json"])
def test_damaged_genes_in_the_cache_are_found_again(suffix, tmp_path, caplog):
    cache = tmp_path / "cache"
    find(tmp_path, fasta(GENOMES), cache_dir=cache)
    first = content(tmp_path)
    (kept,) = (cache / "genes").glob(f"*{suffix}")
    kept.write_bytes(kept.read_bytes()[:-9] + b"x")
    find(tmp_path, fasta(GENOMES), "again", cache_dir=cache)
    assert "found again" in caplog.text
    assert content(tmp_path, "again") == first
    beside(tmp_path / "0", suffix).write_bytes(b"{}")
    with pytest.raises(VirnucproError):
        read_receipt(tmp_path / "0")


def test_a_file_that_changed_since_the_workflow_was_read_is_refused(tmp_path):
    with pytest.raises(DataError, match="changed"):
        find(tmp_path, fasta(GENOMES), sha256="0" * 64)


def test_without_the_extra_the_message_says_what_to_install_and_its_licence(tmp_path, monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr("virnucpro.genes.finder.version", missing)
    with pytest.raises(InputError) as refused:
        find(tmp_path, fasta(GENOMES))
    assert "virnucpro[contigs]" in refused.value.hint
    assert "General Public License" in refused.value.hint


def test_one_module_imports_the_library():
    package = Path(sys.modules["virnucpro"].__file__).parent
    found = [path.name for path in package.rglob("*.py") if "import pyrodigal" in path.read_text()]
    assert found == ["finder.py"]


def test_command_line(tmp_path):
    (tmp_path / "a.fna").write_text(fasta(GENOMES))
    command = [sys.executable, "-m", "virnucpro", "genes", "a.fna", "--output", "out/a"]
    done = subprocess.run(
        [*command, "--processes", "2"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    last = json.loads(done.stderr.splitlines()[-1])
    assert last["result"]["genes"] == read_json(tmp_path / "out" / "a.json")["genes"]
    check_against_the_library(tmp_path / "a.fna", tmp_path / "out" / "a")


def double(batch: list[int]) -> list[int]:
    return [2 * item for item in batch]


def fail(batch: list[int]) -> list[int]:
    raise DataError(f"at {batch[0]}")


@pytest.mark.parametrize("processes", [1, 2])
def test_results_come_in_the_order_of_the_items(processes):
    batches = [[3 * number, 3 * number + 1] for number in range(20)]
    found = list(in_order(double, batches, processes))
    assert found == [(item, 2 * item) for batch in batches for item in batch]
    with pytest.raises(DataError, match="at 0"):
        list(in_order(fail, batches, processes))
