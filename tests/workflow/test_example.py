"""The example that ships: made again from the genome, and right in itself."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from example.derive_lambda_proteins import (
    SHORTEST,
    open_reading_frames,
    proteins,
    read_genome,
    write_fasta,
)
from tests.workflow.snakemake_runs import ROOT

FASTA = ROOT / "example" / "phage_lambda.faa"
GENES = ROOT / "example" / "lambda_genes.gbk"
GENOME = Path(
    os.environ.get("LAMBDA_GENOME", "/usr/share/doc/bowtie2/examples/reference/lambda_virus.fa.gz")
)


@pytest.mark.skipif(not GENOME.exists(), reason="Debian's bowtie2-examples is not installed")
def test_example_is_what_the_script_derives_from_the_genome(tmp_path):
    write_fasta(proteins(read_genome(GENOME)), tmp_path / "again.faa")
    assert (tmp_path / "again.faa").read_bytes() == FASTA.read_bytes()


@pytest.mark.skipif(not GENOME.exists(), reason="Debian's bowtie2-examples is not installed")
def test_genes_are_what_the_script_derives_from_the_genome(tmp_path):
    script, again = ROOT / "example" / "derive_lambda_genes.py", tmp_path / "again.gbk"
    subprocess.run([sys.executable, script, GENOME, again], check=True)
    assert again.read_bytes() == GENES.read_bytes()


def read(path: Path) -> list[tuple[str, str]]:
    records = path.read_text().split(">")[1:]
    return [
        (head, body.replace("\n", "")) for head, _, body in (r.partition("\n") for r in records)
    ]


def test_example_positions_fit_the_lengths():
    for name, residues in read(FASTA):
        start, end = map(int, re.fullmatch(r"lambda\|(\d+)-(\d+)\|[+-]", name).groups())
        assert end - start + 1 == 3 * (len(residues) + 1)  # the stop codon is in the positions
        assert len(residues) >= SHORTEST
        assert residues.startswith("M")
        assert "*" not in residues


def test_reading_frame_runs_from_the_first_start_after_a_stop_to_the_next_stop():
    #         stop  -     start -     start stop  start (open)
    strand = "TAACCCGTGCCCATGTAGATGCC"
    assert list(open_reading_frames(strand)) == [(6, 18)]


def test_reading_frame_without_a_stop_before_it_is_left_out():
    assert list(open_reading_frames("ATGCCCTAA")) == []
