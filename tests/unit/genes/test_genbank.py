import bz2
import gzip
import logging
import lzma
import random
import re
from pathlib import Path

import pytest
import zstandard
from Bio import SeqIO
from Bio.Seq import Seq
from Bio.SeqFeature import SeqFeature, SimpleLocation
from Bio.SeqRecord import SeqRecord
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.genes.flat_files import cds, entry, location, read_bases, read_protein
from virnucpro.errors import InputError
from virnucpro.genes.genbank import parse_genbank
from virnucpro.genes.read import read_genes

STOPS = ("TAA", "TAG", "TGA")


def read(text: str, path: str = "a.gb", **options):
    return list(parse_genbank([text.encode()], path, **options))


def only(text: str):
    (record,) = read(text)
    return record


def open_frame(codons: int, seed: int = 1) -> str:
    """A gene of so many codons, from ATG to a stop."""
    rng = random.Random(seed)
    inner = []
    while len(inner) < codons - 2:
        codon = "".join(rng.choices("ACGT", k=3))
        if codon not in STOPS:
            inner.append(codon)
    return "".join(["ATG", *inner, "TAA"])


GENE = open_frame(30)
PROTEIN = read_protein(GENE, [(1, len(GENE), 1)])
BACKWARDS = read_bases(GENE, [(1, len(GENE), -1)])


@st.composite
def placed_cds(draw):
    """A contig, the parts of a CDS on it, and how it is written."""
    bases = draw(st.text("ACGT", min_size=40, max_size=200))
    strand = draw(st.sampled_from([1, -1]))
    over_origin = draw(st.booleans())
    if over_origin:
        first = draw(st.integers(21, len(bases)))
        spans = [(first, len(bases)), (1, draw(st.integers(1, 20)))]
    else:
        ends = sorted(draw(st.sets(st.integers(1, len(bases)), min_size=2, max_size=6)))
        spans = list(zip(ends[::2], ends[1::2], strict=False))
    parts = [(first, last, strand) for first, last in spans][::strand]
    return (
        *(bases, parts, spans, draw(st.sampled_from([1, 2, 3]))),
        *(draw(st.sampled_from([1, 4, 11])), draw(st.booleans()), draw(st.booleans())),
    )


@given(placed_cds())
def test_any_cds_is_what_a_walk_along_the_nucleotides_finds(placed):
    bases, parts, spans, frame, code, left, right = placed
    place = location(parts, left=left, right=right)
    written = cds(place, f"codon_start={frame}", f"transl_table={code}")
    record = only(entry(bases, written, topology="circular"))
    gene = record.gene
    assert (gene.start, gene.end, gene.strand) == (spans[0][0], spans[-1][1], parts[0][2])
    assert (gene.partial, gene.genetic_code) == (f"{left:d}{right:d}", code)
    expected = read_protein(bases, parts, code=code, frame=frame)
    found = record.residues.decode()
    # Of a last codon with two bases the residue may be known; a start codon's own one is M.
    assert found[1 : len(expected)] == expected[1:]
    assert len(expected) <= len(found) <= len(expected) + 1
    assert found[:1] in {expected[:1], "M", found if not expected else "M"}


def test_start_codons_are_m_where_the_start_is_there():
    bases = "GTG" + GENE[3:]
    assert only(entry(bases, cds("1..90", "transl_table=11"))).residues[:2] == PROTEIN[:2].encode()
    assert only(entry(bases, cds("<1..90", "transl_table=11"))).residues[:1] == b"V"
    assert only(entry(bases, cds("1..90"))).residues[:1] == b"V"  # GTG is no start in table 1


@pytest.mark.parametrize(
    ("bases", "place"),
    [
        ("CC" + GENE + "CC", "3..92"),
        ("CC" + BACKWARDS + "CC", "complement(3..92)"),
        # Over the origin, forwards and backwards.
        (GENE[40:] + "CCC" + GENE[:40], "join(54..93,1..50)"),
        (GENE[40:] + "CCC" + GENE[:40], "54..50"),
        (BACKWARDS[40:] + "CCC" + BACKWARDS[:40], "complement(join(54..93,1..50))"),
        # Trans-splicing: the second half is read on the other strand.
        (GENE[:45] + "CC" + BACKWARDS[:45], "join(1..45,complement(48..92))"),
    ],
)
def test_protein_of_each_kind_of_location(bases, place):
    record = only(entry(bases, cds(place), topology="circular"))
    assert record.residues.decode() == PROTEIN
    again = entry(
        bases, cds(place, f'translation="{PROTEIN}"', "codon_start=1"), topology="circular"
    )
    assert only(again).gene.translation == "given"


def test_ribosomal_slippage_reads_a_base_twice():
    bases = GENE[:45] + GENE[46:]  # without the first base of the second part
    twice = GENE[:45] + GENE[44] + GENE[46:]
    record = only(entry(bases, cds("join(1..45,45..89)", "ribosomal_slippage")))
    assert record.residues.decode() == read_protein(twice, [(1, 90, 1)])
    assert (record.gene.start, record.gene.end) == (1, 89)


def test_a_stop_that_codes_inside_a_gene_still_ends_it():
    bases = GENE[:30] + "TGA" + GENE[33:-3] + "TGA"
    record = only(entry(bases, cds("1..90", "transl_table=27")))
    assert record.residues.decode() == PROTEIN[:10] + "W" + PROTEIN[11:]


def test_trans_splicing_has_the_strand_of_its_first_part():
    bases = GENE[:45] + "CC" + BACKWARDS[:45]
    gene = only(entry(bases, cds("join(1..45,complement(48..92))", "trans_splicing"))).gene
    assert (gene.start, gene.end, gene.strand) == (1, 92, 1)


def test_selenocysteine_and_stops_that_no_codon_ends():
    bases = GENE[:30] + "TGA" + GENE[33:-3] + "TA"
    record = only(
        entry(
            bases,
            cds("1..89", "transl_except=(pos:31..33,aa:Sec)", "transl_except=(pos:88..89,aa:TERM)"),
        )
    )
    assert record.residues.decode() == PROTEIN[:10] + "U" + PROTEIN[11:]
    back = read_bases(bases, [(1, 89, -1)])
    mirrored = cds("complement(1..89)", "transl_except=(pos:complement(57..59),aa:Sec)")
    assert only(entry(back, mirrored)).residues == record.residues


def test_the_translation_of_the_file_is_taken_and_one_that_differs_is_named(caplog):
    caplog.set_level(logging.WARNING)
    other = PROTEIN[:5] + ("W" if PROTEIN[5] != "W" else "K") + PROTEIN[6:]
    text = entry(GENE, *(cds("1..90", f'translation="{each}"') for each in (PROTEIN, other)))
    same, differs = read(text)
    assert [same.gene.translation, differs.gene.translation] == ["given", "differs"]
    assert (same.residues, differs.residues) == (PROTEIN.encode(), other.encode())
    assert "the /translation of 1 CDS is not that of the nucleotides" in caplog.text
    assert f"c_2 (line {differs.line})" in caplog.text


def test_an_exception_that_the_file_tells_is_no_difference(caplog):
    told = cds("1..90", 'exception="RNA editing"', 'translation="MKT"')
    assert only(entry(GENE, told)).gene.translation == "given"
    assert not caplog.text


REFUSED = {
    "pseudo": cds("1..90", "pseudo", f'translation="{PROTEIN}"'),
    "pseudo ": cds("1..90", 'pseudogene="unknown"'),
    "location": cds("somewhere"),
    "location ": cds("1..91"),
    "location  ": cds("join(J00194.1:1..45,46..90)"),
    "location   ": cds("90..1"),
    "genetic_code": cds("1..90", "transl_table=99"),
    "genetic_code ": cds("1..90", "transl_table=universal"),
    "codon_start": cds("1..90", "codon_start=4"),
}


@pytest.mark.parametrize(("reason", "text"), REFUSED.items(), ids=REFUSED)
def test_a_cds_that_cannot_be_used_is_named_with_its_reason_and_the_others_are_read(reason, text):
    before, refused, after = read(entry(GENE, cds("1..90"), text, cds("1..>90")))
    assert refused.findings.reason == reason.strip()
    assert refused.findings.detail
    assert refused.residues == b""
    assert [before.residues, after.residues] == [PROTEIN.encode()] * 2
    assert [before.id, refused.id, after.id] == ["c_1", "c_2", "c_3"]


def test_without_nucleotides_the_translation_is_taken_or_the_reason_told():
    text = entry(GENE, cds("1..90", 'translation="MKT"'), cds("1..90"), origin=False)
    told, refused = read(text)
    assert (told.residues, told.gene.translation) == (b"MKT", "given")
    assert refused.findings.reason == "no_sequence"
    contig = text.replace("//\n", "CONTIG      join(AB1.1:1..90)\n//\n")
    assert [record.residues for record in read(contig)] == [b"MKT", b""]


def test_nucleotides_that_stand_for_several_give_x():
    bases = GENE[:30] + "NNN" + GENE[33:]
    assert only(entry(bases, cds("1..90"))).residues[10:11] == b"X"
    given = cds("1..90", f'translation="{PROTEIN}"')
    assert only(entry(bases, given)).gene.translation == "given"
    letters = only(entry(GENE[:30] + "EEE" + GENE[33:], cds("1..90"))).findings
    assert letters.reason == "invalid_letters"


NAMES = {
    "NCBI": (entry(GENE, cds("1..90"), name="NC_001416", version="NC_001416.1"), "NC_001416.1"),
    "pharokka": (
        entry(GENE, cds("1..90"), name="NODE_1_length_90", version="NODE_1_length_90_cov_1.5|a:b"),
        "NODE_1_length_90_cov_1.5|a:b",
    ),
    "long": (entry(GENE, cds("1..90"), name="contig_with_a_name_that_is_long"), None),
    "run together": (
        entry(GENE, cds("1..90"), locus="NODE_7_length_3390 bp    DNA     linear   PHG"),
        "NODE_7_length_33",
    ),
    "version is a dot": (entry(GENE, cds("1..90"), name="x1", version="."), "x1"),
}


@pytest.mark.parametrize(("text", "name"), NAMES.values(), ids=NAMES)
def test_a_contig_is_named_by_its_version_else_by_its_locus(text, name):
    record = only(text)
    assert record.gene.contig == (name or "contig_with_a_name_that_is_long")
    assert record.id == f"{record.gene.contig}_1"
    assert record.residues == PROTEIN.encode()


def test_product_and_locus_tag_where_there():
    told = cds(
        "1..90", 'product="major capsid protein"', 'locus_tag="T4p01"', 'protein_id="NP_1.1"'
    )
    first, second = read(entry(GENE, told, cds("1..90")))
    assert (first.gene.product, first.gene.locus_tag) == ("major capsid protein", "T4p01")
    assert first.description == "NP_1.1 major capsid protein"
    assert (second.gene.product, second.gene.locus_tag, second.description) == ("", "", "")


def test_each_cds_has_the_line_where_it_begins():
    title = "GBPHG1.SEQ          Genetic Sequence Data Bank\n\n"
    text = title + entry(GENE, cds("1..90"), cds("1..>90")) + "\n" + entry(GENE, cds("<1..90"))
    lines = [number for number, each in enumerate(text.split("\n"), 1) if each[5:8] == "CDS"]
    assert [record.line for record in read(text)] == lines
    windows = text.replace("\n", "\r\n")
    assert [record[:3] for record in read(windows)] == [record[:3] for record in read(text)]
    assert [record.line for record in read(windows)] == lines


@given(st.data())
def test_blocks_cut_anywhere_give_the_same_records(data):
    text = "".join(entry(GENE, cds("1..90"), name=f"c{number}") for number in range(3)).encode()
    cuts = sorted(data.draw(st.sets(st.integers(1, len(text) - 1), max_size=6)))
    blocks = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert list(parse_genbank(blocks, "a")) == list(parse_genbank([text], "a"))


@pytest.mark.parametrize("kept", [0.2, 0.5, 0.8, 0.97])
def test_a_file_that_ends_inside_an_entry_is_refused_with_its_line(kept):
    first, second = entry(GENE, cds("1..90")), entry(GENE, cds("1..90"), name="second")
    with pytest.raises(InputError) as refused:
        read(first + second[: int(len(second) * kept)])
    assert "second" in refused.value.message
    assert refused.value.line == first.count("\n") + 1


def test_a_file_that_lacks_nothing_but_the_end_is_read_with_a_warning(caplog):
    assert only(entry(GENE, cds("1..90"), end="")).residues == PROTEIN.encode()
    assert "without '//'" in caplog.text
    assert only(entry(GENE, cds("1..90"), end="//")).residues == PROTEIN.encode()


def test_entries_of_proteins_are_refused():
    with pytest.raises(InputError, match="is an entry of a protein"):
        read(
            entry(GENE, cds("1..90"), locus="NP_040607 181 aa            linear   PHG 01-JAN-2000")
        )


@pytest.mark.parametrize(
    "compress",
    [gzip.compress, bz2.compress, lzma.compress, zstandard.ZstdCompressor().compress, bytes],
)
def test_compressed_files_of_several_entries(compress, tmp_path: Path):
    text = "".join(entry(GENE, cds("1..90"), name=f"c{number}") for number in range(3))
    path = tmp_path / "a.gbk"
    path.write_bytes(compress(text.encode()))
    assert [record.id for record in read_genes(path)] == ["c0_1", "c1_1", "c2_1"]


def test_limit_of_residues_counts_the_rest():
    (record,) = read(entry(GENE, cds("1..90")), max_record_residues=10)
    assert (record.residues.decode(), record.length) == (PROTEIN[:10], len(PROTEIN))


def test_files_that_biopython_writes_are_read_gene_by_gene(tmp_path: Path):
    """As pharokka and phold write theirs: features of several kinds, ids that are long."""
    rng, path, expected = random.Random(3), tmp_path / "pharokka.gbk", []
    records = []
    for number in range(3):
        bases = "".join(rng.choices("ACGT", k=900))
        name = f"NODE_{number}_length_900_cov_{number}.5"
        record = SeqRecord(Seq(bases), name, name, annotations={"molecule_type": "DNA"})
        for index in range(4):
            start, strand = rng.randrange(0, 400), rng.choice([1, -1])
            parts = [(start + 1, start + 300, strand)]
            protein = read_protein(bases, parts, code=11)
            qualifiers = {"transl_table": ["11"], "product": [f"p{index}"], "phrog": ["7"]}
            if index % 2:
                qualifiers["translation"] = [protein]
            place = SimpleLocation(start, start + 300, strand)
            record.features += [
                SeqFeature(place, "gene"),
                SeqFeature(place, "CDS", qualifiers=qualifiers),
            ]
            expected.append((f"{name}_{index + 1}", start + 1, start + 300, strand, protein[1:]))
        records.append(record)
    SeqIO.write(records, path, "genbank")
    found = [
        (each.id, each.gene.start, each.gene.end, each.gene.strand, each.residues.decode()[1:])
        for each in read_genes(path)
    ]
    assert found == expected
    assert not [each for each in read_genes(path) if each.gene.translation == "differs"]
    assert len(re.findall("^     CDS ", path.read_text(), re.MULTILINE)) == len(found)


ODD_LOCATIONS = [
    *("?..90", "1..?", "(1.5)..90", "one-of(1,4)..90", "30^31", "order(1..45,46..90)", "bond(1,2)"),
    *("join(1..45,complement(AB.1:1..4))", "<1", "7", "complement(<1..>90)", "1..>200", "gap(5)"),
    *("join(1..45)", "join()", "", "complement(join(1..45,46..90)", "90..1", "0..90", "-5..90"),
    *("complement(AB.1:1..90)", "join(<1..45,50..>90)", "1.90", "1..90..100", "1 .. 90", "é"),
]


@pytest.mark.parametrize("translation", [(), ('translation="MKT"',)], ids=["without", "with"])
@pytest.mark.parametrize("topology", ["linear", "circular"])
def test_whatever_a_location_is_each_cds_comes_once_or_is_named(translation, topology):
    features = [cds(place, *translation) for place in ODD_LOCATIONS]
    records = read(entry(GENE, cds("1..90"), *features, cds("1..90"), topology=topology))
    assert [record.id for record in records] == [f"c_{i + 1}" for i in range(len(features) + 2)]
    assert [records[0].residues, records[-1].residues] == [PROTEIN.encode()] * 2
    for record in records:
        assert bool(record.residues) != bool(record.findings.reason), record
        assert record.gene.strand in (1, -1)


@given(st.data())
def test_any_damage_is_refused_or_accounted_for(data):
    features = [cds("1..90", "product=x"), cds("join(1..45,46..90)", f'translation="{PROTEIN}"')]
    text = "".join(entry(GENE, *features, name=f"c{number}", version=".") for number in range(3))
    lines = text.splitlines(keepends=True)
    for _ in range(data.draw(st.integers(1, 4))):
        index = data.draw(st.integers(0, len(lines) - 1))
        damage = data.draw(st.sampled_from(["drop", "double", "cut", "letter"]))
        column = data.draw(st.integers(0, len(lines[index])))
        lines[index] = {
            "drop": "",
            "double": lines[index] * 2,
            "cut": lines[index][:column] + "\n",
            "letter": lines[index][:column] + data.draw(st.characters()) + lines[index][column:],
        }[damage]
    try:
        records = list(parse_genbank(["".join(lines).encode("utf-8", "replace")], "a"))
    except InputError:
        return
    for record in records:
        assert record.residues or record.findings.reason
    assert [record.line for record in records] == sorted({record.line for record in records})


def test_bases_that_are_no_letters_at_all_are_named():
    text = entry(GENE, cds("1..90"))
    at = text.index("ORIGIN")
    damaged = text[:at] + text[at:].replace(GENE[:10].lower(), "é" + GENE[1:10].lower(), 1)
    assert damaged != text
    (record,) = parse_genbank([damaged.encode()], "a")
    assert record.findings.reason in ("invalid_letters", "location")
