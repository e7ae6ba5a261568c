import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virnucpro.errors import InputError
from virnucpro.genes.prodigal import format_header, parse_header
from virnucpro.genes.read import read_genes
from virnucpro.sequences.gene import Gene

# As each program writes it.
HEADERS = {
    "Prodigal": (
        "NC_001416.1_3 # 2836 # 4437 # 1 # ID=1_3;partial=00;start_type=ATG;rbs_motif=GGA/GAG/AGG;"
        "rbs_spacer=5-10bp;gc_cont=0.592",
        Gene("NC_001416.1", 3, 2836, 4437, 1, "00", 0),
    ),
    "pyrodigal with full ids": (
        "k149_27590_1 # 130 # 1266 # -1 # ID=k149_27590_1;partial=10;start_type=Edge;"
        "rbs_motif=None;rbs_spacer=None;gc_cont=0.318",
        Gene("k149_27590", 1, 130, 1266, -1, "10", 0),
    ),
    "geNomad": (
        "contig_9|provirus_100_9000_12 # 1 # 99 # -1 # ID=9_12;partial=01;start_type=ATG;"
        "rbs_motif=None;rbs_spacer=None;genetic_code=15;gc_cont=0.4",
        Gene("contig_9|provirus_100_9000", 12, 1, 99, -1, "01", 15),
    ),
}
GENES = st.builds(
    Gene,
    contig=st.text(string.ascii_letters + string.digits + "_|:.=;#-é", min_size=1),
    gene=st.integers(1, 10**6),
    start=st.integers(1, 10**6),
    end=st.integers(10**6, 10**8),
    strand=st.sampled_from([1, -1]),
    partial=st.sampled_from(["00", "01", "10", "11"]),
    genetic_code=st.integers(0, 33),
)


@pytest.mark.parametrize(("header", "gene"), HEADERS.values(), ids=HEADERS)
def test_each_program_is_read(header, gene):
    assert parse_header(header) == gene


@given(GENES, st.integers(1), st.sampled_from(["", "start_type=ATG;rbs_motif=None;"]))
def test_what_is_written_is_read(gene, number, attributes):
    assert parse_header(format_header(gene, number, attributes)) == gene


@pytest.mark.parametrize(
    "header",
    [
        "c_1",
        "c_1 some protein",
        "c # 1 # 9 # 1 # partial=00",
        "c_0 # 1 # 9 # 1 # partial=00",
        "c_1 # 0 # 9 # 1 # partial=00",
        "c_1 # 9 # 1 # 1 # partial=00",
        "c_1 # 1 # 9 # 2 # partial=00",
        "c_1 # 1 # 9 # 1 # ID=1_1",
        "c_1 # 1 # 9 # 1 # partial=02",
        "c_1 # 1 # 9 # 1 # impartial=00",
        "c_1 # 1 # 9 # 1 # ",
        "c_1 # ١ # 9 # 1 # partial=00",
    ],
)
@pytest.mark.fault(59)
def test_other_headers_are_refused_with_the_line(header, tmp_path):
    path = tmp_path / "a.faa"
    path.write_text(f">{HEADERS['Prodigal'][0]}\nMKT*\n>{header}\nMLL\n")
    with pytest.raises(InputError) as refused:
        list(read_genes(path))
    assert (refused.value.path, refused.value.line) == (str(path), 3)
    assert "input_type: protein" in refused.value.hint


def test_the_whole_header_as_id_is_read_too(tmp_path):
    path = tmp_path / "a.faa"
    header, gene = HEADERS["Prodigal"]
    path.write_text(f">{header}\nMKT*\n")
    (record,) = read_genes(path, whole_header=True)
    assert (record.id, record.gene) == (header, gene)
