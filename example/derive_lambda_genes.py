r"""Derive the example of an annotated genome: the known genes of phage lambda, as a GenBank file.

The genome is the same as in derive_lambda_proteins.py:

    python example/derive_lambda_genes.py \
        /usr/share/doc/bowtie2/examples/reference/lambda_virus.fa.gz example/lambda_genes.gbk

Names, places and products are as the genome (NC_001416.1) is commonly annotated. Each gene is
checked to be an open reading frame of the genome, from a start codon to its first stop codon;
products are not checked, and serve as examples.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from Bio import SeqIO
from Bio.Seq import Seq
from Bio.SeqFeature import SeqFeature, SimpleLocation
from Bio.SeqRecord import SeqRecord
from derive_lambda_proteins import STARTS, STOPS, read_genome

UNKNOWN = "hypothetical protein"
# Name, first and last base from 1, strand, product.
GENES = f"""
nu1    191   736   + terminase small subunit
A      711   2636  + terminase large subunit
W      2633  2839  + head-tail joining protein
B      2836  4437  + portal protein
C      4418  5737  + head maturation protease
nu3    5132  5737  + capsid scaffold protein
D      5747  6079  + capsid decoration protein
E      6135  7160  + major capsid protein
Fi     7202  7600  + DNA packaging protein
Fii    7612  7965  + head-tail joining protein
Z      7977  8555  + minor tail protein
U      8552  8947  + tail terminator protein
V      8955  9695  + major tail protein
G      9711  10133 + tail assembly protein
H      10542 13103 + tail tape measure protein
M      13100 13429 + tail tip protein
L      13429 14127 + tail tip protein
K      14276 14875 + tail tip protein
I      14773 15444 + tail tip assembly protein
J      15505 18903 + tail tip protein, host specificity
lom    18965 19585 + outer membrane protein
orf401 19650 20855 + side tail fibre protein
orf314 21029 21973 + side tail fibre protein
orf194 21973 22557 + tail fibre assembly protein
ea47   22686 23918 - {UNKNOWN}
ea31   24509 25399 - {UNKNOWN}
ea59   25396 26973 - {UNKNOWN}
int    27812 28882 - integrase
xis    28860 29078 - excisionase
ea8.5  29374 29655 - {UNKNOWN}
ea22   29847 30395 - {UNKNOWN}
orf61  30839 31024 - {UNKNOWN}
orf63  31005 31196 - {UNKNOWN}
orf60a 31169 31351 - {UNKNOWN}
exo    31348 32028 - exonuclease
bet    32025 32810 - single-strand annealing protein
gam    32816 33232 - inhibitor of the host's RecBCD
kil    33187 33330 - inhibitor of the host's cell division
cIII   33299 33463 - regulatory protein CIII
ea10   33536 33904 - {UNKNOWN}
ral    34087 34287 - restriction alleviation protein
N      35037 35438 - early antiterminator
rexB   35825 36259 - exclusion protein
rexA   36275 37114 - exclusion protein
cI     37227 37940 - repressor
cro    38041 38241 + regulatory protein Cro
cII    38360 38653 + transcriptional activator
O      38686 39585 + replication protein
P      39582 40283 + replication protein
ren    40280 40570 + exclusion protein
ninB   40644 41084 + recombination protein
ninC   41081 41953 + {UNKNOWN}
ninD   41950 42123 + {UNKNOWN}
ninE   42090 42272 + {UNKNOWN}
ninF   42269 42439 + {UNKNOWN}
ninG   42429 43043 + recombination protein
ninH   43040 43246 + {UNKNOWN}
ninI   43224 43889 + protein phosphatase
Q      43886 44509 + late antiterminator
S      45186 45509 + holin
R      45493 45969 + endolysin
Rz     45966 46427 + spanin
bor    46459 46752 - lipoprotein
"""


def feature(line: str, genome: str) -> SeqFeature:
    """Make the CDS of a line of the table.

    Raises:
        ValueError: the place is not an open reading frame.
    """
    name, first, last, strand, product = line.split(maxsplit=4)
    place = SimpleLocation(int(first) - 1, int(last), {"+": 1, "-": -1}[strand])
    bases = str(place.extract(Seq(genome)))
    codons = [bases[start : start + 3] for start in range(0, len(bases), 3)]
    if codons[0] not in STARTS or [codon in STOPS for codon in codons].index(True) != (
        len(codons) - 1
    ):
        raise ValueError(f"{name} is not an open reading frame")
    qualifiers = {"gene": [name], "locus_tag": [f"lambda_{name}"]}
    qualifiers |= {"codon_start": ["1"], "transl_table": ["11"], "product": [product]}
    return SeqFeature(place, "CDS", qualifiers=qualifiers)


def main() -> None:
    """Write the genes of GENOME to a GenBank file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("genome", type=Path, help="lambda_virus.fa or lambda_virus.fa.gz")
    parser.add_argument("genbank", type=Path, help="the GenBank file to write")
    arguments = parser.parse_args()
    genome = read_genome(arguments.genome)
    record = SeqRecord(Seq(genome), "NC_001416.1", "NC_001416", "Phage lambda, genome")
    record.annotations = {"molecule_type": "DNA", "topology": "linear"}
    record.annotations |= {"data_file_division": "PHG", "organism": "Escherichia phage Lambda"}
    record.features = [feature(line, genome) for line in GENES.strip().splitlines()]
    SeqIO.write(record, arguments.genbank, "genbank")


if __name__ == "__main__":
    main()
