import io
import logging
import subprocess
import sys

import pytest
from Bio.SeqIO.FastaIO import SimpleFastaParser
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.sequences.archives import COMPRESS
from virnucpro.errors import InputError
from virnucpro.sequences.fasta import MAX_HEADER_BYTES, FastaParser, Record, read_fasta

GOOD = b">a first protein\nMKV\nLLA\n>b\nACDEFGHIK\n\n>c\tthird\t one \n>d\nM"
GOOD_RECORDS = [
    ("a", "first protein", b"MKVLLA", 1),
    ("b", "", b"ACDEFGHIK", 4),
    ("c", "third\t one", b"", 7),
    ("d", "", b"M", 8),
]


def parse(data, sizes=None, limit=None):
    """Parse bytes cut into blocks of the given sizes, over and over; None for one block."""
    parser = FastaParser("x.fasta", max_record_residues=limit)
    records, start, turn = [], 0, 0
    while start < len(data):
        size = len(data) if sizes is None else sizes[turn % len(sizes)]
        records += parser.feed(data[start : start + size])
        start, turn = start + size, turn + 1
    return records + list(parser.finish())


def facts(records):
    return [(record.id, record.description, record.residues, record.line) for record in records]


def refusal(data, sizes=None):
    with pytest.raises(InputError) as caught:
        parse(data, sizes)
    assert caught.value.exit_code == 2
    assert caught.value.path == "x.fasta"
    assert caught.value.hint
    return caught.value


# --- records ------------------------------------------------------------------------------------


def test_records_come_in_order_with_the_line_of_their_header():
    assert facts(parse(GOOD)) == GOOD_RECORDS
    assert parse(b">a b\nMK\nV\n") == [Record("a", "b", b"MKV", "x.fasta", 1)]


@pytest.mark.fault(27)
@pytest.mark.parametrize(
    ("name", "data"),
    {
        "CRLF": GOOD.replace(b"\n", b"\r\n"),
        "old Mac": GOOD.replace(b"\n", b"\r"),
        "final newline": GOOD + b"\n",
        "trailing spaces": b" \t\n".join(GOOD.split(b"\n")) + b"  ",
    }.items(),
)
def test_line_ends_do_not_change_the_records(name, data):
    for sizes in (None, [1], [2], [3, 5]):
        records = parse(data, sizes)
        assert facts(records) == GOOD_RECORDS, name
        assert not any(record.findings.whitespace for record in records)


@pytest.mark.fault(27)
def test_blank_lines_do_not_change_the_records_but_are_counted_in_line_numbers():
    data = b"\n \n" + GOOD.replace(b"\n", b"\n\n")
    expected = [(*record[:3], 2 * record[3] + 1) for record in GOOD_RECORDS]
    assert facts(parse(data)) == facts(parse(data, [1])) == expected


def test_white_space_between_letters_is_removed_and_counted():
    data = b">a\nMK VL\tL \n  LA A\n>b\nMK\n"
    for sizes in (None, [1], [2], [3], [7]):
        first, second = parse(data, sizes)
        assert (first.residues, first.findings.whitespace) == (b"MKVLLLAA", 3)
        assert (second.residues, second.findings.whitespace) == (b"MK", 0)


@pytest.mark.fault(33)
@pytest.mark.parametrize(
    "name",
    ["../x", "/etc/x", "a/b", ".", "x" * 300, "\x01\x0b\x0c\x1c\x85\x00\x7f", "a;b$(c)'\"", "é|ß"],
)
def test_an_id_survives_whatever_is_in_it(name):
    (record,) = parse(f">{name} some  text \nMKV\n".encode())
    assert (record.id, record.description) == (name, "some  text")


@pytest.mark.fault(30)
def test_residues_keep_letters_gaps_and_stops():
    assert parse(b">a\nm-K.*\xc3\x84V\n")[0].residues == b"m-K.*?V"


def test_a_header_that_is_not_utf8_is_read_as_latin1_with_a_warning(caplog):
    with caplog.at_level(logging.WARNING):
        records = parse(b">a\nMK\n>b prot\xe9ine\nMK\n>c\xe9\nMK\n")
    assert records[1].description == "protéine"
    assert records[2].id == "cé"
    assert "x.fasta, line 3" in caplog.text
    assert "2 headers" in caplog.text


def test_a_record_over_the_limit_is_cut_and_its_length_known():
    data = b">a\n" + b"MKVLA\n" * 100 + b">b\nMKV\n>c\nMKVL\n"
    for sizes in (None, [1], [7], [50]):
        records = parse(data, sizes, limit=3)
        assert [record.residues for record in records] == [b"MKV"] * 3
        assert [record.length for record in records] == [500, 3, 4]
        assert [record.findings.excess for record in records] == [497, 0, 1]
        assert [record.line for record in records] == [1, 102, 104]


# --- refusals -----------------------------------------------------------------------------------

REFUSED = {
    "FASTQ": (b"@read1\nACGT\n+\nIIII\n", 1, "FASTQ", "predict proteins"),
    "text": (b"\n\nprotein list\n>a\nMKV\n", 3, "text before the first '>'", "FASTA"),
    "short text": (b"MK", 1, "text before the first '>'", "FASTA"),
    "comment": (b"; made by hand\n>a\nMKV\n", 1, "';' line before the first '>'", "remove"),
    "UTF-16": (">a\nMKV\n".encode("utf-16"), 1, "UTF-16", "iconv"),
    "zip": (b"PK\x03\x04\x14\0\0\0", 1, "zip archive", "unpack"),
    "empty id": (b">a\nMK\n>\nMKV\n", 3, "no id", "name"),
    "empty id at the start": (b">\nMKV\n", 1, "no id", "name"),
    "empty id at the end": (b">a\nMKV\n>", 3, "no id", "name"),
    "blank id": (b">a\n>  \t\nMKV\n", 2, "no id", "name"),
    "joined files": (b">a\nMKV\nLLA>b second\nMKV\n", 3, "'>' among the residues", "joined"),
    "long header": (b">a\nM\n>" + b"x" * (MAX_HEADER_BYTES + 1), 3, "header is longer", "break"),
}


@pytest.mark.fault(26, 28)
@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_fasta_is_refused_with_line_and_hint(case):
    data, line, message, hint = REFUSED[case]
    for sizes in (None, [1], [3], [70_000]):
        error = refusal(data, sizes) if len(data) < 1000 or sizes != [1] else refusal(data)
        assert error.line == line
        assert message in error.message
        assert hint in error.hint


def test_a_header_just_within_the_limit_is_read():
    data = b">" + b"x" * MAX_HEADER_BYTES + b"\nMKV\n"
    assert len(parse(data)[0].id) == len(parse(data, [1000])[0].id) == MAX_HEADER_BYTES
    assert refusal(b">x" + data[1:]).line == 1


def test_a_file_without_records_gives_none():
    for data in (b"", b"\n", b" \n\t\r\n"):
        assert parse(data, [1]) == []


# --- properties ---------------------------------------------------------------------------------

ALPHABET = b"MKVLAXJ*-. \t>\n\r\r\n\n>\xc3\x84\0"
anything = st.lists(st.sampled_from([bytes([code]) for code in ALPHABET]), max_size=120).map(
    b"".join
)


def outcome(data, sizes, limit):
    try:
        return parse(data, sizes, limit)
    except InputError as error:
        return error.line, error.message


@settings(max_examples=400, deadline=None)
@given(
    data=anything.map(lambda tail: b">a" + tail),
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    limit=st.none() | st.integers(1, 8),
)
def test_records_and_refusals_do_not_depend_on_where_blocks_end(data, sizes, limit):
    assert outcome(data, sizes, limit) == outcome(data, None, limit) == outcome(data, [1], limit)


words = st.text(st.characters(codec="utf-8", exclude_characters=" \t\r\n"), min_size=1, max_size=12)
entries = st.lists(
    st.tuples(
        words,
        st.lists(words, max_size=3).map(" ".join),
        st.text("ACDEFGHIKLMNPQRSTVWYacdxJBZ*-.", max_size=200).map(str.encode),
    ),
    min_size=1,
    max_size=12,
)


def fasta_bytes(records, width, end):
    lines = []
    for name, description, residues in records:
        lines.append(f">{name} {description}".rstrip(" ").encode())
        lines += [residues[start : start + width] for start in range(0, len(residues), width)]
    return end.join(lines) + end


@settings(max_examples=120, deadline=None)
@given(
    records=entries,
    width=st.integers(1, 80),
    end=st.sampled_from([b"\n", b"\r\n", b"\r"]),
    kind=st.sampled_from(sorted(COMPRESS)),
)
def test_every_record_written_is_read_once(tmp_path_factory, records, width, end, kind):
    path = tmp_path_factory.mktemp("fasta") / "proteins"
    path.write_bytes(COMPRESS[kind](fasta_bytes(records, width, end)))
    read = [(record.id, record.description, record.residues) for record in read_fasta(path)]
    assert read == records


@settings(max_examples=100, deadline=None)
@given(
    records=st.lists(
        st.tuples(
            st.text("abcXYZ019_.|", min_size=1, max_size=9),
            st.text("abc [],=", max_size=20).map(str.strip),
            st.text("ACDEFGHIKLMNPQRSTVWYX*", max_size=300).map(str.encode),
        ),
        max_size=20,
    ),
    width=st.integers(1, 80),
    end=st.sampled_from([b"\n", b"\r\n"]),
)
def test_good_files_are_read_as_biopython_reads_them(records, width, end):
    data = fasta_bytes(records, width, end)
    theirs = list(SimpleFastaParser(io.StringIO(data.decode(), newline=None)))
    ours = [
        (f"{record.id} {record.description}".strip(), record.residues.decode())
        for record in parse(data, [17])
    ]
    assert ours == [(title.strip(), residues) for title, residues in theirs]


def test_a_good_file_is_read_as_dnaio_reads_it(tmp_path):
    dnaio = pytest.importorskip("dnaio")
    records = [(f"p{n}", f"protein {n}" * (n % 2), b"MKVLLAGHIW" * (n % 9)) for n in range(500)]
    path = tmp_path / "proteins.fasta"
    path.write_bytes(fasta_bytes(records, 60, b"\n"))
    with dnaio.open(path) as reader:
        theirs = [(record.name, record.sequence) for record in reader]
    ours = [
        (f"{record.id} {record.description}".strip(), record.residues.decode())
        for record in read_fasta(path)
    ]
    assert ours == theirs


# --- memory -------------------------------------------------------------------------------------

GIANTS = {
    "sequence": ("b'>a\\n', (b'MKVLAMKVLA' * 100_000 for _ in range(300))", "300000000 letters"),
    "blank lines": ("b'>a\\nMK', (b'\\n' * 1_000_000 for _ in range(300))", "2 letters"),
    "spaces": ("b'>a\\nMK', (b' ' * 1_000_000 for _ in range(300))", "2 letters"),
    "blank start": ("b'', (b' \\n' * 500_000 for _ in range(300))", "0 letters"),
    "header": ("b'>a\\nMK\\n>', (b'x' * 1_000_000 for _ in range(300))", "header is longer"),
}


@pytest.mark.fault(24)
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory from /proc")
@pytest.mark.parametrize("case", GIANTS)
def test_a_giant_line_is_read_in_under_200_mb_of_memory(case):
    source, expected = GIANTS[case]
    script = f"""
from virnucpro.errors import InputError
from virnucpro.sequences.fasta import FastaParser
parser = FastaParser("x", max_record_residues=100_000)
start, blocks = {source}
records = list(parser.feed(start))
try:
    for block in blocks:
        records += parser.feed(block)
    records += parser.finish()
    print(sum(record.length for record in records), "letters")
except InputError as error:
    print(error.line, error)
print(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
"""
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True
    )
    *report, kibibytes = done.stdout.splitlines()
    assert expected in report[0]
    assert int(kibibytes) * 1024 < 200e6
