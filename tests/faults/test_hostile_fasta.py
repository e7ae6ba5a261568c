"""FASTA files made of everything that goes wrong, together: no record is lost without a word."""

import contextlib
import csv
import io
import subprocess
import sys
import tempfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from Bio import SeqIO
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.sequences.archives import ARCHIVES, COMPRESS
from virnucpro.errors import InputError
from virnucpro.files import read_json
from virnucpro.sequences.manifest import SplitParameters
from virnucpro.sequences.split import split

RESIDUES = "ACDEFGHIKLMNPQRSTVWY"
ids = st.one_of(
    st.text("abcXYZ019|._-", min_size=1, max_size=12),
    st.sampled_from(["../x", "/etc/passwd", "a/b", ".", "..", "$(touch)", "x;y", "'\"", "é"]),
    st.just("n" * 300),
)
sequences = st.text(RESIDUES, min_size=1, max_size=80)
odd_sequences = st.text(RESIDUES + "acxjJUOBZX*-. \t\0é1", max_size=60)
line_ends = st.sampled_from(["\n", "\r\n", "\r"])
widths = st.sampled_from([1, 7, 60, 1000])
# What a row of docs/faults.md puts into a file, in the place of a line of residues or of a header.
WRECKS = {
    26: ["@read1\nACGT\n+\nIIII\n", "\ufeff", "text without a header\n", "; a comment\n"],
    28: [">\nMKV\n", ">  \nMKV\n", ">id\tMKVLAMKVLAMKVLAMKVLAMKVLA\n"],
    29: [">twice\nMKV\n>twice\nMKL\n", ">twice\nMKV\n>twice\nMKV\n"],
    30: [">none\n", ">gaps\n---\n", ">stops\n***\n", ">digits\n12345\n"],
    31: [">long\n" + "MKVLA" * 300 + "\n"],
}


@st.composite
def records(draw, letters):
    """Text of some records with ids of their own, and the (id, letters) in it."""
    names = draw(st.lists(ids, min_size=1, max_size=8, unique=True))
    found, text = [], ""
    end, width = draw(line_ends), draw(widths)
    for name in names:
        body = draw(letters)
        lines = [body[start : start + width] for start in range(0, len(body), width)]
        text += f">{name} described{end}" + "".join(line + end for line in lines)
        text += draw(st.sampled_from(["", end]))
        found.append((name, body))
    return text, found


def run(content, *, stdin=False, **options):
    """Split bytes; gives the manifest, the accepted rows and the quarantined rows."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        fasta, shards, rows = folder / "in.faa", folder / "shards", folder / "records.parquet"
        fasta.write_bytes(content)
        before = set(folder.iterdir())
        out = {"shards_dir": shards, "records": rows, "parameters": SplitParameters(**options)}
        try:
            if stdin:
                with fasta.open("rb") as handle, standard_input(handle):
                    split([Path("-")], sample="s", **out)
            else:
                split([fasta], sample="s", **out)
        except InputError:
            assert set(folder.iterdir()) == before
            raise
        with (shards / "quarantine.tsv").open(newline="", encoding="utf-8") as handle:
            refused = list(csv.DictReader(handle, delimiter="\t"))
        return read_json(shards / "manifest.json"), pq.read_table(rows).to_pylist(), refused


@contextlib.contextmanager
def standard_input(handle):
    kept, sys.stdin = sys.stdin, io.TextIOWrapper(io.BufferedReader(handle.raw))
    try:
        yield
    finally:
        sys.stdin.detach()
        sys.stdin = kept


many = settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])


@pytest.mark.fault(22, 27, 33)
@given(records(sequences), st.sampled_from([*COMPRESS, "stdin"]))
@many
def test_good_records_are_those_that_biopython_reads(made, kind):
    text, found = made
    data = COMPRESS.get(kind, bytes)(text.encode())
    _, rows, refused = run(data, stdin=kind == "stdin", input_type="any")
    assert [row["id"] for row in rows] == [name for name, _ in found]
    assert refused == []
    with io.StringIO(text, newline=None) as handle:
        theirs = [(record.id, len(record.seq)) for record in SeqIO.parse(handle, "fasta")]
    assert [(row["id"], row["length"]) for row in rows] == theirs


@pytest.mark.fault(25, 26, 28, 29, 30, 31)
@given(
    records(odd_sequences),
    st.lists(st.sampled_from([wreck for kind in WRECKS.values() for wreck in kind]), max_size=3),
    st.sampled_from([*COMPRESS]),
    st.randoms(use_true_random=False),
)
@many
def test_any_mixture_is_refused_or_accounted_for(made, wrecks, kind, rng):
    text, _ = made
    places = sorted(rng.choice([0, len(text)]) for _ in wrecks)
    for place, wreck in zip(reversed(places), wrecks, strict=True):
        text = text[:place] + wreck + text[place:]
    data = text.encode()
    try:
        manifest, rows, refused = run(COMPRESS[kind](data), max_record_residues=1000)
    except InputError as error:
        refusal = str(error)
    else:
        refusal = None
    if refusal is not None:
        assert "line " in refusal or "record" in refusal or "nucleotides" in refusal
        return
    lines = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
    marked = b"\0\x1a\xef\xbb\xbf"  # ends and starts of files that were joined
    headers = sum(line.lstrip(marked).startswith(b">") for line in lines)
    assert manifest["records"]["read"] == headers
    assert len(rows) + len(refused) == manifest["records"]["read"]
    names = [row["id"] for row in (*rows, *refused)]
    assert len(set(names)) == len(names)
    assert all(row["length"] <= 1000 for row in rows)


@pytest.mark.fault(22, 23)
@given(records(sequences), st.sampled_from(ARCHIVES), st.data())
@many
def test_damaged_archive_never_gives_fewer_or_other_records(made, kind, data):
    text, found = made
    whole = COMPRESS[kind](text.encode())
    damaged = bytearray(whole)
    place = data.draw(st.integers(1, len(whole) - 1))
    how = data.draw(st.sampled_from(["cut", "flip", "append"]))
    if how == "cut":
        del damaged[place:]
    elif how == "flip":
        damaged[place] ^= 1 << data.draw(st.integers(0, 7))
    else:
        damaged += data.draw(st.binary(min_size=1, max_size=20))
    try:
        _, rows, _ = run(bytes(damaged), input_type="any")
    except InputError:
        return
    lengths = [(name, len(letters)) for name, letters in found]
    assert [(row["id"], row["length"]) for row in rows] == lengths


LIMITED = """
import sys
from pathlib import Path
from virnucpro.errors import VirnucproError
from virnucpro.sequences.manifest import SplitParameters
from virnucpro.sequences.split import split
try:
    split([Path(sys.argv[1])], sample="s", shards_dir=Path("shards"), records=Path("r.parquet"))
except VirnucproError as error:
    print(error, file=sys.stderr)
print(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
"""


@pytest.mark.fault(24)
@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=[pytest.mark.long] if kind in {"bzip2", "xz"} else [])
        for kind in COMPRESS
    ],
)
def test_split_of_a_bomb_stays_under_200_mb(kind, tmp_path):
    """100 MB of residues in one record; the slow ones to compress are for the long tests."""
    giant = b">giant\n" + b"MKVLA" * 20_000_000 + b"\n>b\nMKV\n"
    (tmp_path / "in.faa").write_bytes(COMPRESS[kind](giant))
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, "in.faa"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) * 1024 < 200e6
    with (tmp_path / "shards" / "quarantine.tsv").open(newline="") as handle:
        (row,) = csv.DictReader(handle, delimiter="\t")
    assert (row["id"], row["reason"], row["length"]) == ("giant", "too_long", "100000000")
