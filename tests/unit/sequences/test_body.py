"""What of a FASTA body is residues: the grammar, line by line and in whole files."""

import gzip
import io
import logging
import lzma
import re
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.sequences.archives import ARCHIVES, COMPRESS
from tests.unit.sequences.test_split import fasta, proteins, refusal, run
from virnucpro.errors import DataError, InputError
from virnucpro.sequences.body import Layout, read_line
from virnucpro.sequences.fasta import FastaParser

MEMBRANE = "MSLLTEVETPIRNEWGCRCNDSSDPLVVAASIIGIVHLILWIIDRLFSKS"
NEURAMIN = "MNPNQKIITIGSVCMTIGMANLILQIGNIISIWVSHSIQLGNQSQIETCN"
GENOME = "ATGAGTCTTCTAACCGAGGTCGAAACGTACGTTCTCTCTATCATCCCGTCAGGCCCCCTCAAAGCC" * 3


def parse(data: bytes, sizes=None):
    """Parse bytes whole, or in blocks of these sizes in turn."""
    parser = FastaParser("x.faa")
    blocks = [data]
    if sizes:
        blocks, start, turn = [], 0, 0
        while start < len(data):
            size = sizes[turn % len(sizes)]
            blocks.append(data[start : start + size])
            start, turn = start + size, turn + 1
    records = [record for block in blocks for record in parser.feed(block)]
    return records + list(parser.finish())


def sample(*bodies: str) -> bytes:
    """Make a file of good records around some bodies."""
    odd = "".join(f">odd{n} x\n{body}\n" for n, body in enumerate(bodies))
    return f">first\n{MEMBRANE}\n{odd}>last\n{NEURAMIN}\n".encode()


# --- residues -----------------------------------------------------------------------------------

RESIDUES = {
    "blocks of ten": "MSLLTEVETP IRNEWGCRCN DSSDPLVVAA\nSIIGIVHLIL WII",
    "GenBank": "        1 mslltevetp irnewgcrcn\n       21 dsspliv",
    "EMBL": "     MSLLTEVETP IRNEWGCRCN        20\n     DSSPLIV     27",
    "a short one with its number": "1 MSLLT",
    "a short one with its length": "MSLLTEV 7",
    "one block a line": "1 MSLLTEVETPIRNEWGCRCN\n21 DSSPL",
    "lines cut short": "    1 mslltevetp irnewgcrcn dssdplv\n   61 aasiigivhl",
    "a part of a sequence": "121 mslltevetp irnewgcrcn dssdplvvaa siigivhlil",
    "blocks of six": "MSLLTE VETPIR NEWGCR CNDS\nSDPLVV AA",
    "short blocks": "MSL LTE VET PI",
    "two blocks": "MSLLTEVETP IRNEWGC",
    "letters one by one": "M S L L T E V E",
    "selenocysteine in blocks": "MSLLTEVETP IUNEWGCRCN DSSDPLV",
    "soft masking in blocks": "MSLLTEVETP irnewGCRCN DSSDPLV",
    "UniProt's ruler": "        10         20\nMSLLTEVETP IRNEWGCRCN\n        30\nDSSPLIV",
    "gaps and stops": "MSL--LTE.V*",
    "no-break spaces": "MSLLT\u00a0EVETPI\u00a0RN\u00a0\n\u3000IRNEW",
    "no-break spaces in blocks": "1\u00a0mslltevetp\u00a0irnewgcrcn\n21\u00a0dssdplv",
    "invisible spaces": "MSL\u200bLTEVE\u00ad\u200bTP\ufeff\nsll\u200bte\u200e\u2063",
    "dashes": "MSL\u2013LT\u2212E\u2014V",
    "tabs at the ends": "\tMSLLTE\t \n IR ",
}


@pytest.mark.fault(47)
@pytest.mark.parametrize("case", RESIDUES)
def test_residues_are_found_in_every_print(case, tmp_path):
    body = RESIDUES[case]
    letters = re.sub(r"[\s\d\u200b\u00ad\ufeff\u200e\u2063]", "", body).translate(
        {0x2013: 45, 0x2212: 45, 0x2014: 45}
    )
    data = sample(body)
    for sizes in (None, [1], [7]):
        record = parse(data, sizes)[1]
        assert record.residues.decode() == letters
        assert not record.findings.text_line
    result = run(tmp_path, data, input_type="protein")
    assert not result.quarantine
    assert bool(result.manifest["changes"]["numbers"]) == bool(re.search(r"\d", body))


@pytest.mark.fault(30)
def test_a_letter_outside_ascii_counts_once(tmp_path):
    result = run(tmp_path, sample("MSLÄTEVαTP", "MSLLTE•VETPIRNEW©GCRCN"))
    assert [row["replaced"] for row in result.records] == [0, 2, 2, 0]
    assert [row["length"] for row in result.records][1:3] == [10, 22]
    latin1 = b">a\nMSL\xc4TE\xa0\n>b\n" + b"MSLLT\xa0" * 4 + b"M"
    assert [r.residues for r in parse(latin1)] == [b"MSL?TE", b"MSLLT" * 4 + b"M"]
    assert not any(record.findings.text_line for record in parse(latin1))


# --- text ---------------------------------------------------------------------------------------

TEXT = {
    "sentence": ("MSLLTE\nConnection reset by peer (104).", 5),
    "words": ("a slow green turtle swims under the old pier", 4),
    "hash": (f"{MEMBRANE}\n# seen twice, see page 4", 5),
    "exclamation mark": (f"{MEMBRANE}\n! low quality", 5),
    "colon between chains": (f"{MEMBRANE}:{NEURAMIN}", 4),
    "slash between chains": (f"{MEMBRANE}/{NEURAMIN}", 4),
    "bar between chains": (f"{MEMBRANE}|{NEURAMIN}", 4),
    "number that counts nothing": ("Protein 9", 4),
    "numbers that go back": ("1 MSLLTEVETP IRNEW\n1 MNPNQKIITI GSVCM", 5),
    "a number in a sentence": ("page 4", 4),
    "a number and a sentence": ("503 service unavailable", 4),
    "a number of thousands of digits": (f"{'7' * 5000} MSLLTEVETP", 4),
    "digits alone": ("7" * 5000, 4),
    "digits of another script": ("\u0661 MSLLT EVETPIRNE", 4),
    "markup": ("MSLLTE\n<b>bold</b>", 5),
    "digits among letters": ("MSL77LTE", 4),
    "words in mixed case": ("Access Denied", 4),
    "words like blocks": ("server error", 4),
    "more words like blocks": ("gateway timeout", 4),
    "words in upper case": ("ACCESS DENIED", 4),
    "words with a point": ("Request failed.", 4),
    "words of three letters": ("the red fox", 4),
    "words below blocks": (
        f"{MEMBRANE[:10]} {MEMBRANE[10:20]} {MEMBRANE[20:30]}\nconnection reset",
        5,
    ),
    "words with a no-break space": ("resource\u00a0temporarily\u00a0unavailable", 4),
    "three-letter code": ("MET SER LEU LEU THR GLU VAL GLU", 4),
    "a short word with a number that counts nothing": ("PAGE 9", 4),
    "question mark": ("MSLLTE?VETP", 4),
    "NUL within": ("MSL\0LTE", 4),
    "e-mail": ("ask someone@example.org", 4),
}


@pytest.mark.fault(47)
@pytest.mark.parametrize("case", TEXT)
def test_text_is_quarantined_with_its_line_and_the_others_are_embedded(case, tmp_path, caplog):
    body, line = TEXT[case]
    data = sample(body, MEMBRANE[3:])
    result = run(tmp_path, data, input_type="protein")
    assert [row["id"] for row in result.records] == ["first", "odd1", "last"]
    (row,) = result.quarantine
    assert (row["id"], row["reason"]) == ("odd0", "text")
    assert f"line {line} " in row["detail"]
    assert body.split("\n")[line - 4][:40].strip("\0") in row["detail"]
    assert ("chains are given" in row["detail"]) == ("chains" in case)
    assert f"quarantined as text; {tmp_path / '0.fasta'}, line {line}" in caplog.text
    assert parse(data, [1]) == parse(data, [5]) == parse(data)


@pytest.mark.fault(47)
@pytest.mark.parametrize(
    "body", ["Met-Ser-Leu-Leu", "H-Met-Ser-\nLeu-Leu-OH", "MetSerLeuLeuThr", "MET-SER-LEU-LEU"]
)
def test_the_three_letter_code_in_one_word_is_text(body, tmp_path):
    result = run(tmp_path, sample(body, "MET-SER-LEE", "Ala"), input_type="protein")
    assert [row["id"] for row in result.records] == ["first", "odd1", "odd2", "last"]
    (row,) = result.quarantine
    assert (row["reason"], row["line"]) == ("text", "3")
    assert row["detail"] == f"three-letter code: {body}".replace("\n", "")


@pytest.mark.fault(47)
def test_comments_and_ends_of_files_are_skipped_counted_and_warned_of(tmp_path, caplog):
    comments = f">a\n{MEMBRANE}\n; by hand\n;again\n>b\n{NEURAMIN}\n\0\n\x1a".encode()
    marks = f"\ufeff>c\n{MEMBRANE[:40]}\n\0>d\n{MEMBRANE[:30]}\n\ufeff>e\nMKVLL\0\0".encode()
    with caplog.at_level(logging.WARNING):
        result = run(tmp_path, comments, marks, input_type="protein")
    assert [row["id"] for row in result.records] == ["a", "b", "c", "d", "e"]
    assert [row["normalised"] for row in result.records] == [False] * 5
    assert result.manifest["left_out"] == {"NUL or Ctrl-Z": 3, "comment lines": 2}
    assert "comment lines: 2" in caplog.text
    assert "1.fasta: NUL, Ctrl-Z or byte order marks" in caplog.text
    for sizes in ([1], [2], [3]):
        assert parse(comments, sizes) == parse(comments)
        assert parse(marks, sizes) == parse(marks)


@pytest.mark.fault(47)
@pytest.mark.parametrize(
    ("name", "body"),
    [("prot_1", "prot_1"), ("KVIRUS", "KVIRUS"), ("Prot_A", "PROT_A"), ("kvirus", "KVIRUS")],
)
def test_an_id_in_place_of_its_sequence_is_quarantined(name, body, tmp_path):
    result = run(tmp_path, sample() + f">{name} x\n{body}\n".encode())
    assert [row["reason"] for row in result.quarantine] == ["id_as_sequence"]


def test_headers_of_clusters_are_dropped_and_their_ids_stay(tmp_path):
    cluster = f">r1\n>r1 capsid\n{MEMBRANE}\n>m2\n{NEURAMIN}\n>r3\n>r3\nMKV\n>none\n>x\nMKL\n"
    result = run(tmp_path, cluster.encode())
    assert [row["id"] for row in result.records] == ["r1", "m2", "r3", "x"]
    assert [(row["id"], row["reason"]) for row in result.quarantine] == [("none", "empty")]
    assert result.manifest["left_out"] == {"cluster headers": 2}


def test_an_id_may_be_white_space_of_another_kind(tmp_path):
    result = run(tmp_path, b">\x0b\n>\x0b\nMKV\n>\xc2\xa0\n>x\nMKL\n")
    assert [row["id"] for row in result.records] == ["\x0b", "x"]
    assert [row["id"] for row in result.quarantine] == ["\xa0"]


def test_unknown_residues_are_quarantined_or_told(tmp_path):
    data = b">x\n" + b"X" * 60 + b"\n>b\n" + b"xB" * 30 + b"\n>half\n" + b"MX" * 20 + b"\n"
    result = run(tmp_path, data)
    assert [(row["id"], row["reason"]) for row in result.quarantine] == [
        ("x", "unknown_residues"),
        ("b", "unknown_residues"),
    ]
    assert [row["unknown"] for row in result.records] == [20]
    assert len(run(tmp_path, data, max_unknown_fraction=1.0).records) == 3


# --- records glued together ---------------------------------------------------------------------

GLUED = {
    "UniProt": (f"{MEMBRANE}\nsp|P00001|CAP_TEST Capsid\n{NEURAMIN}", 5, "without its '>'"),
    "NCBI": (f"{MEMBRANE}\nYP_009724391.1 ORF3a protein [Test virus]\n{NEURAMIN}", 5, "its '>'"),
    "an id like the record's": (f"{MEMBRANE}\nodd7 other\n{NEURAMIN}", 5, "without its '>'"),
    "Prodigal": (f"{MEMBRANE}\nk_2 # 3 # 99 # 1 # ID=1_2\n{NEURAMIN}", 5, "without its '>'"),
    "an accession of ten": (f"{MEMBRANE}\nA0A024RBG1 Capsid\n{NEURAMIN}", 5, "without its '>'"),
    "a gene of a contig": (f"{MEMBRANE}\nNC_001416.1_5\n{NEURAMIN}", 5, "without its '>'"),
    "HTML": (f"{MEMBRANE}\n&gt;other\n{NEURAMIN}", 5, "without its '>'"),
    "FASTQ": (f"{MEMBRANE}\n@read/1\nACGTACGT\n+\nIIII#III", 5, "FASTQ"),
}


@pytest.mark.fault(48)
@pytest.mark.parametrize("case", GLUED)
def test_glued_records_refuse_the_file_with_the_line(case, tmp_path):
    body, line, message = GLUED[case]
    error = refusal(tmp_path, sample(body), input_type="protein")
    assert (error.line, message in error.message) == (line, True)
    assert error.hint
    for sizes in ([1], [11]):
        with pytest.raises(InputError, match=re.escape(message)):
            parse(sample(body), sizes)


@pytest.mark.fault(48)
@pytest.mark.parametrize("kind", ARCHIVES)
@pytest.mark.parametrize("end", ["\n", ""])
def test_an_archive_behind_plain_text_is_refused(kind, end, tmp_path):
    plain = sample().removesuffix(b"\n") + end.encode()
    error = refusal(tmp_path, plain + COMPRESS[kind](sample("MKVLL") * 9), input_type="protein")
    assert (error.line, "compressed file among" in error.message) == (5 - (not end), True)
    assert "before" in error.hint


@pytest.mark.fault(48)
@pytest.mark.parametrize("name", ["P1;CAP_TEST", "p1;CAP_TEST", "D1;CAP_TEST", "P1;", " P1; x"])
def test_pir_is_refused(name, tmp_path):
    for title, end in (("Capsid protein", "*"), ("Capsid", "*"), ("Capsid", "")):
        data = f">{name}\n{title}\n{MEMBRANE}{end}\n".encode()
        error = refusal(tmp_path, sample() + data + b">z\nMKV\n")
        assert "PIR" in error.message
        assert "SeqIO.convert" in error.hint


# --- nucleotides --------------------------------------------------------------------------------


@pytest.mark.fault(49)
@pytest.mark.parametrize("genome", [GENOME, GENOME.lower(), GENOME.replace("T", "U")])
def test_nucleotides_are_found_one_by_one_also_late(genome, tmp_path, caplog):
    many = fasta(proteins(1200, seed=3))
    result = run(tmp_path, many + f">genome\n{genome}\n".encode(), input_type="protein")
    assert [(row["id"], row["reason"]) for row in result.quarantine] == [("genome", "nucleotides")]
    assert "1 records quarantined as nucleotides" in caplog.text
    assert not run(tmp_path, many + f">genome\n{genome}\n".encode(), input_type="any").quarantine
    odd = f">genome\n{genome[:50]}L{genome[50:]}\n".encode()
    assert [
        row["reason"] for row in run(tmp_path, many + odd, input_type="protein").quarantine
    ] == ["nucleotides"]


def test_proteins_of_few_kinds_of_residues_are_no_nucleotides(tmp_path):
    data = f">a\n{'GA' * 60}\n>b\n{'TNG' * 40}\n>c\n{MEMBRANE}\n>d\n{NEURAMIN * 9}\n".encode()
    assert not run(tmp_path, data, input_type="protein").quarantine


# --- files that are no FASTA --------------------------------------------------------------------


def tar(data: bytes, mode: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        member = tarfile.TarInfo("good.faa")
        member.size = len(data)
        archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def old_tar(data: bytes) -> bytes:
    """Make a tar archive as before POSIX: without the mark "ustar"."""
    archive = bytearray(tar(data, "w"))
    archive[257:265] = bytes(8)
    archive[148:156] = b" " * 8
    archive[148:156] = b"%06o\0 " % sum(archive[:512])
    return bytes(archive)


GOOD = sample()
FOREIGN = {
    "tar": (tar(GOOD, "w"), "is a tar archive", "tar -xf"),
    "tar.gz": (tar(GOOD, "w:gz"), "is a tar archive", "tar -xf"),
    "tar of 1979": (old_tar(GOOD), "is a tar archive", "tar -xf"),
    "page": (b"<!doctype html>\n<p>404 > 400</p>\n", "is a web page or XML", "download"),
    "page behind a mark": (b"\xef\xbb\xbf\n<!DOCTYPE html>", "is a web page or XML", "download"),
    "HTML's >": (b"&gt;a\nMKV\n&gt;b\nMKL\n", "without its '>'", "back"),
    "XML": (b'<?xml version="1.0"?><eFetchResult/>', "is a web page or XML", "download"),
    "compress": (b"\x1f\x9d\x90>a", "compress (.Z)", "gzip -dc"),
    "lz4": (b"\x04\x22\x4d\x18dd", "lz4", "lz4 -dc"),
    "lzma": (lzma.compress(GOOD, format=lzma.FORMAT_ALONE), "lzma", "xz -dc"),
    "gzip twice": (gzip.compress(gzip.compress(GOOD)), "compressed twice", "zcat"),
    "xz in gzip": (gzip.compress(lzma.compress(GOOD)), "compressed twice", "unpack"),
    "LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS", "lfs pull"),
    "UTF-16 without a mark": (GOOD.decode().encode("utf-16-le"), "UTF-16", "iconv"),
    "UTF-16, high byte first": (GOOD.decode().encode("utf-16-be"), "UTF-16", "iconv"),
    "7z": (b"7z\xbc\xaf\x27\x1c\0\4", "7z", "unpack"),
    "PDF": (b"%PDF-1.7\n", "PDF", "proteins"),
    "HDF5": (b"\x89HDF\r\n\x1a\n\0", "HDF5", "output"),
    "GenBank": (b"LOCUS       AB000001 5 aa\n", "GenBank", "FASTA"),
    "Stockholm": (b"# STOCKHOLM 1.0\n", "alignment", "Biopython"),
    "JSON": (b'{"error": "API key"}', "JSON", "download"),
    "UTF-32": (GOOD.decode().encode("utf-32"), "UTF-32", "iconv"),
    "UTF-32 without a mark": (GOOD.decode().encode("utf-32-le"), "UTF-32", "iconv"),
    "NumPy": (b"\x93NUMPY\1\0", "NumPy", "output"),
    "Arrow": (b"ARROW1\0\0", "Arrow", "output"),
    "picture": (b"\x89PNG\r\n\x1a\n", "picture", "look"),
    "program": (b"\x7fELF\2\1\1\0\0\0", "program", "look"),
    "HMMER": (b"HMMER3/f [3.3]\nNAME  cap\n", "HMMER", "sequences"),
    "PHYLIP": (f" 2 50\nfirst     {MEMBRANE}\n".encode(), "PHYLIP", "AlignIO"),
    "CSV": (f"id,length,sequence\na,50,{MEMBRANE}\n".encode(), "table", "below"),
    "tabular": (f"a\t{MEMBRANE}\nb\t{NEURAMIN}\n".encode(), "table", "below"),
    "first header": (f"sp|P00001|X y\n{MEMBRANE}\n>b\nMKV".encode(), "without its '>'", "back"),
    "noise": (bytes(range(128, 160)) + b"\x03\x07", "binary", "FASTA"),
    "notes": (b"these are the proteins of May\n>a\nMKV\n", "text before", "'>'"),
}  # fmt: skip


@pytest.mark.fault(26)
@pytest.mark.parametrize("case", FOREIGN)
def test_a_file_of_another_kind_is_named_for_what_it_is(case, tmp_path):
    data, message, hint = FOREIGN[case]
    error = refusal(tmp_path, data)
    assert message in error.message
    assert hint in error.hint
    assert "Remove what stands before" not in error.hint


def test_an_id_may_begin_with_nul():
    assert [record.id for record in parse(b">\0x\nMKV\n>b\nMKV\n")] == ["\0x", "b"]


def test_a_bom_is_skipped_also_inside_an_archive(tmp_path):
    data = gzip.compress(b"\xef\xbb\xbf" + GOOD + b"\xef\xbb\xbf>more\nMKV\n")
    assert [row["id"] for row in run(tmp_path, data).records] == ["first", "last", "more"]


# --- ids, exports, empty samples, files that change ---------------------------------------------


def test_ids_may_be_whole_headers_and_the_error_says_so(tmp_path):
    data = b">hCoV/Old Town/1 spike\nMKV\n>hCoV/Old Hill/1 spike\nMKL\n"
    assert "ids: whole_header" in refusal(tmp_path, data).hint
    result = run(tmp_path, data, ids="whole_header")
    assert [row["id"] for row in result.records] == [
        "hCoV/Old Town/1 spike",
        "hCoV/Old Hill/1 spike",
    ]


@pytest.mark.fault(34, 52)
@pytest.mark.parametrize("name", ["a/b", "."])
def test_ids_that_an_export_cannot_have_are_refused_with_the_line(name, tmp_path):
    data = f">ok\nMKV\n>{name} x\nMKL\n".encode()
    error = refusal(tmp_path, data, exports=["uniprot-h5"])
    assert (error.line, repr(name) in error.message) == (3, True)
    assert len(run(tmp_path, data, exports=["npy"]).records) == 2


@pytest.mark.fault(25)
@pytest.mark.parametrize("data", [b"", b"\n", b">a\n\n", b">t\nno residues at all\n"])
def test_an_empty_sample_is_an_error_or_kept(data, tmp_path, caplog):
    assert "empty_samples: keep" in refusal(tmp_path, data).hint
    result = run(tmp_path, data, empty_samples="keep")
    assert result.records == []
    assert {name: len(shard) for name, shard in result.shards.items()} == {"00000": 0}
    assert len(result.quarantine) == result.manifest["records"]["quarantined"]
    assert "the result will be empty" in caplog.text


def test_a_file_that_is_not_what_was_said_is_refused(tmp_path):
    with pytest.raises(DataError, match="changed while it was read, or since"):
        run(tmp_path, GOOD, sha256=["0" * 64])


# --- properties ---------------------------------------------------------------------------------

lines = st.one_of(
    st.text("ACDEFGHIKLMNPQRSTVWYacdxJ*-.", max_size=40),
    st.text("ACDEF 1\t-\u00a0\u2013\u00c4", max_size=20),
    st.sampled_from(["; note", "# note", "a word", "1 ACDEF GHIKL", "\0", "sp|P1|X y", "@r", "+"]),
)


def outcome(data: bytes, sizes=None):
    try:
        return parse(data, sizes)
    except InputError as error:
        return str(error)


@settings(max_examples=200, deadline=None)
@given(
    bodies=st.lists(st.lists(lines, max_size=6), min_size=1, max_size=4),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=4),
)
def test_a_file_cut_anywhere_is_read_as_the_whole(bodies, end, sizes):
    data = end.join(line for n, body in enumerate(bodies) for line in (f">p{n} x", *body))
    assert outcome(data.encode(), sizes) == outcome(data.encode())


@settings(max_examples=200, deadline=None)
@given(body=st.lists(lines, max_size=6))
def test_residues_are_those_of_the_lines_one_by_one(body):
    """The slow reading, line by line, is the oracle of the fast one."""
    try:
        record = parse(("\n".join([">p1 x", *body]) + "\n").encode())[0]
    except InputError:
        return
    layout, letters, gaps, text = Layout(), b"", 0, False
    for line in body:
        found = read_line(line.encode().rstrip(b"\0"), layout, len(letters), len(letters) - gaps)
        letters += found.letters
        gaps = letters.count(b"-") + letters.count(b".")
        text = text or found.is_text
    assert record.residues == letters
    assert bool(record.findings.text_line) == text
