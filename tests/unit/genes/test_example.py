"""The shipped genome with its genes, beside the reading frames that were found without it."""

from pathlib import Path

from virnucpro.genes.read import read_genes
from virnucpro.sequences.fasta import read_fasta

EXAMPLE = Path(__file__).parents[3] / "example"


def test_every_gene_of_the_shipped_genome_ends_a_shipped_reading_frame():
    frames = {}  # residues by the place of the stop codon and the strand
    for record in read_fasta(EXAMPLE / "phage_lambda.faa"):
        _, place, sign = record.id.split("|")
        first, last = map(int, place.split("-"))
        frames[last if sign == "+" else first, sign] = record.residues
    genes = list(read_genes(EXAMPLE / "lambda_genes.gbk"))
    assert len(genes) == 63
    for record in genes:
        gene = record.gene
        assert (gene.contig, gene.genetic_code, gene.partial) == ("NC_001416.1", 11, "00")
        assert gene.translation == "made"
        assert len(record.residues) == (gene.end - gene.start + 1) // 3 - 1
        if len(record.residues) >= 50:
            stop = (gene.end, "+") if gene.strand > 0 else (gene.start, "-")
            # A frame begins at its first start codon, a gene at its own: residues after it agree.
            assert frames[stop].endswith(record.residues[1:])
