import csv
import hashlib
import io
import logging
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.sequences.archives import COMPRESS
from virnucpro.errors import DataError, InputError
from virnucpro.files import read_json, sha256_of
from virnucpro.formats import SPLIT_FORMAT
from virnucpro.sequences import identifiers, outputs, summary
from virnucpro.sequences import split as split_module
from virnucpro.sequences.alphabet import normalise, sequence_key
from virnucpro.sequences.manifest import SplitParameters, read_manifest
from virnucpro.sequences.outputs import choose_shards
from virnucpro.sequences.shards import read_shard
from virnucpro.sequences.split import split
from virnucpro.sequences.spool import BUCKETS
from virnucpro.sequences.staging import staged_directory

LETTERS = "ACDEFGHIKLMNPQRSTVWY"


class Result:
    """The files of one split."""

    def __init__(self, folder):
        self.shards_dir = folder / "shards"
        self.records_path = folder / "records.parquet"

    @property
    def manifest(self):
        return read_json(self.shards_dir / "manifest.json")

    @property
    def records(self):
        return pq.read_table(self.records_path).to_pylist()

    @property
    def quarantine(self):
        with (self.shards_dir / "quarantine.tsv").open(encoding="utf-8", newline="") as handle:
            return list(csv.DictReader(handle, delimiter="\t"))

    @property
    def shards(self):
        """By number: the rest of a name is of the content."""
        return {path.stem[:5]: read_shard(path) for path in sorted(self.shards_dir.glob("*.fasta"))}

    @property
    def files(self):
        everything = {path.name: path.read_bytes() for path in self.shards_dir.iterdir()}
        return everything | {"records": self.records_path.read_bytes()}


def run(folder, *fastas, **options):
    """Split FASTA bytes, or files that are there already."""
    paths = []
    for number, fasta in enumerate(fastas):
        path = fasta
        if isinstance(fasta, bytes):
            path = folder / f"{number}.fasta"
            path.write_bytes(fasta)
        paths.append(path)
    result = Result(folder)
    sample, sha256 = options.pop("sample", "s"), options.pop("sha256", ())
    manifest = split(
        paths,
        sample=sample,
        shards_dir=result.shards_dir,
        records=result.records_path,
        parameters=SplitParameters(**({"input_type": "any"} | options)),
        sha256=sha256,
    )
    assert manifest == read_manifest(result.shards_dir)
    return result


def refusal(folder, *fastas, **options):
    before = sorted(folder.iterdir())
    with pytest.raises(InputError) as caught:
        run(folder, *fastas, **options)
    left = {path.name for path in folder.iterdir()} - {path.name for path in before}
    assert {name for name in left if not name.endswith(".fasta")} == set()
    return caught.value


def proteins(count, seed=1, longest=60):
    rng = random.Random(seed)
    return ["".join(rng.choices(LETTERS, k=rng.randint(5, longest))) for _ in range(count)]


def fasta(sequences, start=0):
    lines = (f">p{number} protein\n{s}\n" for number, s in enumerate(sequences, start))
    return "".join(lines).encode()


# --- what comes out -----------------------------------------------------------------------------


def test_each_record_has_its_row(tmp_path):
    data = b">a first one\nMKV\nLLA\n>b\nmkj*\n>c\tx\nMKVLLA\n>d\n\n"
    result = run(tmp_path, data, b">e\nMKVLLA*\n")
    key, other = sequence_key(b"MKVLLA"), sequence_key(b"MKX")
    row = {"length": 6, "key": key, "shard": 0, "replaced": 0, "unknown": 0}
    row |= {"normalised": False, "file": 0}
    assert result.records == [
        row | {"id": "a", "description": "first one", "line": 1},
        row
        | {"id": "b", "description": "", "line": 4}
        | {"length": 3, "key": other, "replaced": 1, "unknown": 1, "normalised": True},
        row | {"id": "c", "description": "x", "line": 6},
        row | {"id": "e", "description": "", "line": 1, "file": 1, "normalised": True},
    ]
    assert [row["id"] for row in result.quarantine] == ["d"]
    shards = result.shards["00000"]
    assert dict(zip(shards.keys, shards.residues, strict=True)) == {
        key.hex(): b"MKVLLA",
        other.hex(): b"MKX",
    }


def test_the_records_have_the_agreed_columns(tmp_path):
    schema = pq.read_schema(run(tmp_path, b">a\nMKV\n").records_path)
    assert [(field.name, field.type) for field in schema] == [
        ("id", pa.string()),
        ("description", pa.string()),
        ("length", pa.int32()),
        ("key", pa.binary(16)),
        ("shard", pa.int32()),
        ("replaced", pa.int32()),
        ("unknown", pa.int32()),
        ("normalised", pa.bool_()),
        ("file", pa.int32()),
        ("line", pa.int64()),
    ]


def test_the_manifest_counts_what_is_in_the_files(tmp_path):
    data = b">a\nMKVLLA\n>b\nmkvl-la*\n>c\nM K\n>d\nMKVLLAGHIW\n>e\nJJ\n>f\n"
    result = run(tmp_path, data, sample="gut 1")
    manifest = result.manifest
    (path,) = result.shards_dir.glob("*.fasta")
    shard = path.read_bytes()
    assert manifest == {
        "format": SPLIT_FORMAT,
        "records_sha256": hashlib.sha256(result.records_path.read_bytes()).hexdigest(),
        "quarantine_sha256": sha256_of(result.shards_dir / "quarantine.tsv"),
        "sample": "gut 1",
        "parameters": {
            "shard_tokens": 100_000_000,
            "max_invalid_fraction": 0.5,
            "max_unknown_fraction": 0.9,
            "max_record_residues": 100_000,
            "input_type": "any",
            "ids": "first_word",
            "duplicate_ids": "error",
            "empty_samples": "error",
            "exports": [],
        },
        "inputs": [
            {
                "path": str(tmp_path / "0.fasta"),
                "bytes": len(data),
                "sha256": hashlib.sha256(data).hexdigest(),
                "records": 6,
            }
        ],
        "records": {
            "read": 6,
            "accepted": 4,
            "quarantined": 2,
            "normalised": 2,
            "duplicates": 1,
            "renamed": 0,
        },
        "quarantined": {"empty": 1, "invalid_letters": 1},
        "changes": {
            "upper_case": 6,
            "whitespace": 1,
            "stop_removed": 1,
            "gap_removed": 1,
            "replaced": 0,
            "numbers": 0,
        },
        "left_out": {},
        "sequences": 3,
        "residues": 18,
        "tokens": 24,
        "lengths": {"min": 2, "median": 6.0, "mean": 6.0, "max": 10},
        "shards": [
            {
                "name": "00000-" + hashlib.sha256(shard).hexdigest()[:12],
                "sequences": 3,
                "tokens": 24,
                "sha256": hashlib.sha256(shard).hexdigest(),
            }
        ],
    }


def test_the_raw_bytes_of_an_archive_are_hashed(tmp_path):
    raw = COMPRESS["gzip"](b">a\nMKV\n")
    entry = run(tmp_path, raw).manifest["inputs"][0]
    assert entry["sha256"] == hashlib.sha256(raw).hexdigest()
    assert entry["bytes"] == len(raw)


QUARANTINED = {
    "no residues": (b">x\n\n", 0, "empty", "no residues below the header"),
    "a stop alone": (b">x\n*\n", 0, "empty", "only gaps or stops: *"),
    "residues after a tab": (b">x\tMKVLLA*\n", 0, "empty", "seems to hold them (MKVLLA)"),
    "residues after a description": (
        b">x coat protein\tMKVLLAMKVLLAMKVLLAMKVLLA\n",
        0,
        "empty",
        "seems to hold them (MKVLLAMKVLLA",
    ),
    "an empty record with a name": (b">x coat protein\n", 0, "empty", "no residues below"),
    "too many strange letters": (b">x\nMKJJJ\n", 5, "invalid_letters", "3 of 5 letters"),
    "too long": (b">x\n" + b"MKVLA" * 30, 150, "too_long", "150 letters, more than"),
}


@pytest.mark.fault(28, 30)
@pytest.mark.parametrize("case", QUARANTINED)
def test_quarantined_records_are_listed_with_the_reason(tmp_path, case):
    record, length, reason, detail = QUARANTINED[case]
    result = run(tmp_path, b">ok\nMKV\n" + record, max_record_residues=100, sample="gut")
    (row,) = result.quarantine
    assert row.pop("detail").find(detail) >= 0
    assert row == {
        "sample": "gut",
        "id": "x",
        "file": str(tmp_path / "0.fasta"),
        "line": "3",
        "length": str(length),
        "reason": reason,
    }
    assert [record["id"] for record in result.records] == ["ok"]
    assert result.manifest["quarantined"] == {reason: 1}


def test_the_invalid_fraction_is_a_limit_that_may_be_reached(tmp_path):
    data = b">a\nMKJJ\n>b\nMKJJJ\n>c\nXXXM\n"
    assert [row["id"] for row in run(tmp_path, data).quarantine] == ["b"]
    result = run(tmp_path, data, max_invalid_fraction=1.0)
    assert [record["replaced"] for record in result.records] == [2, 3, 0]


@pytest.mark.fault(33)
def test_strange_ids_and_quotes_survive_in_both_tables(tmp_path):
    names = ["../x", "/etc/x", "x" * 300, "\x01\x0b\x1c\x7f", 'q"uo"te', "\0", "é"]
    good = "".join(f">{name}\nMKV\n" for name in names)
    bad = "".join(f">{name}!\n" for name in names)
    result = run(tmp_path, (good + bad).encode())
    assert [record["id"] for record in result.records] == names
    assert [row["id"] for row in result.quarantine] == [name + "!" for name in names]


def test_standard_input_and_archives_can_be_mixed(tmp_path):
    (tmp_path / "b.gz").write_bytes(COMPRESS["gzip"](b">b\nMKV\n"))
    script = (
        "import sys; from pathlib import Path; from virnucpro.sequences.split import split\n"
        "split([Path('-'), Path('b.gz')], sample='s', shards_dir=Path('shards'),"
        " records=Path('records.parquet'))"
    )
    subprocess.run(
        [sys.executable, "-c", script],
        input=COMPRESS["zstd"](b">a\nMKVLL\n"),
        cwd=tmp_path,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    result = Result(tmp_path)
    assert [record["id"] for record in result.records] == ["a", "b"]
    assert [entry["path"] for entry in result.manifest["inputs"]] == ["standard input", "b.gz"]


def test_the_summary_is_logged(tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="virnucpro"):
        run(tmp_path, b">a\nMKV\n>b\nmkv\n>c\n")
    assert "s: 3 records, 1 distinct sequences, 1 duplicates" in caplog.text
    assert "1 shard(s)" in caplog.text
    assert "1 records normalised (letters: upper_case: 3)" in caplog.text
    assert "1 records quarantined (empty: 1)" in caplog.text


# --- shards -------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_lines_say_how_many_bytes_of_an_archive_were_read_and_of_which_sample(tmp_path, caplog):
    archive = COMPRESS["gzip"](fasta(proteins(50)))
    with caplog.at_level(logging.INFO, logger="virnucpro"):
        run(tmp_path, archive, fasta(proteins(3, seed=2), 50))
    size = sum((tmp_path / f"{number}.fasta").stat().st_size for number in (0, 1))
    assert f"s: reading {size:,} bytes in " in caplog.text
    assert "s: writing 1 shards in " in caplog.text


def test_bars_are_shown_on_a_terminal_and_taken_away_also_after_an_error(
    tmp_path, monkeypatch, caplog
):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    with caplog.at_level(logging.INFO, logger="virnucpro"):
        run(tmp_path, fasta(proteins(5)))
        with pytest.raises(InputError):
            run(tmp_path, b"no FASTA\n")
    for bar in ("s: reading   0%|", "s: writing   0%|"):
        assert bar in terminal.getvalue()
    assert terminal.getvalue().endswith("\r")


def test_of_standard_input_what_was_read_is_shown_without_a_share(tmp_path, monkeypatch, caplog):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(fasta(proteins(5)))))
    with caplog.at_level(logging.INFO, logger="virnucpro"):
        run(tmp_path, Path("-"))
    assert "s: reading 0.00 bytes, " in terminal.getvalue()
    assert "s: reading   0%" not in terminal.getvalue()


def test_the_quiet_see_no_progress(tmp_path, monkeypatch, caplog):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    with caplog.at_level(logging.WARNING, logger="virnucpro"):
        run(tmp_path, fasta(proteins(5)))
    assert terminal.getvalue() == caplog.text == ""


def distinct_sequences(shards):
    """Count each sequence's places, all of which must be where its key says."""
    for name, shard in shards.items():
        for key in shard.keys:
            assert int.from_bytes(bytes.fromhex(key)[:8], "little") % len(shards) == int(name)
    return Counter(residues for shard in shards.values() for residues in shard.residues)


@pytest.mark.parametrize("shard_tokens", [100_000_000, 9_000, 2_000])
def test_shards_hold_each_distinct_sequence_once_where_its_key_says(tmp_path, shard_tokens):
    sequences = proteins(700)
    result = run(tmp_path, fasta(sequences + sequences[:50]), shard_tokens=shard_tokens)
    shards = result.shards
    assert distinct_sequences(shards) == Counter({s.encode() for s in sequences})
    number = len(shards)
    assert number & (number - 1) == 0
    for record in result.records:
        assert int.from_bytes(record["key"][:8], "little") % number == record["shard"]
    entries = result.manifest["shards"]
    assert [entry["name"][:5] for entry in entries] == list(shards)
    assert [entry["sequences"] for entry in entries] == [len(shard) for shard in shards.values()]
    assert [entry["tokens"] for entry in entries] == [
        sum(len(residues) + 2 for residues in shard.residues) for shard in shards.values()
    ]
    assert all(entry["tokens"] <= shard_tokens for entry in entries)


def test_more_shards_than_partitions_are_written(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # thousands of files
    sequences = proteins(1500, longest=20)
    shards = run(tmp_path, fasta(sequences), shard_tokens=120).shards
    assert len(shards) > 256
    assert distinct_sequences(shards) == Counter({s.encode() for s in sequences})


def test_a_crowd_of_shards_is_warned_of(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(summary, "_MANY_SHARDS", 2)
    run(tmp_path, fasta(proteins(60)), shard_tokens=500)
    assert "each is a job of its own" in caplog.text


def test_the_number_of_shards_is_the_smallest_that_fits():
    tokens = np.full(BUCKETS, 3)
    assert choose_shards(tokens, 3 * BUCKETS) == 1
    assert choose_shards(tokens, 3 * BUCKETS - 1) == 2
    assert choose_shards(tokens, 3) == BUCKETS
    assert choose_shards(tokens, 1) == 1
    assert choose_shards(np.zeros(BUCKETS, np.int64), 1) == 1
    uneven = np.zeros(BUCKETS, np.int64)
    uneven[[1, 3]] = 10  # both odd: two shards do not part them, four do
    assert choose_shards(uneven, 10) == 4


def test_a_giant_sequence_does_not_force_more_shards(tmp_path, caplog):
    sequences = proteins(20)
    result = run(tmp_path, fasta([*sequences, "MKVLA" * 1000]), shard_tokens=2000)
    assert len(result.shards) == 1
    assert "a sequence alone is longer" in caplog.text


def test_many_copies_of_one_sequence_do_not_force_more_shards(tmp_path):
    assert len(run(tmp_path, fasta(["MKVLA"] * 500), shard_tokens=700).shards) == 1


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    raws=st.lists(st.text("ACDEFGHIKLMNmkvJX*-.", max_size=40), min_size=1, max_size=40).filter(
        lambda raws: any("M" in raw for raw in raws)
    ),
    width=st.integers(1, 30),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
    kind=st.sampled_from(sorted(COMPRESS)),
    shard_tokens=st.sampled_from([30, 200, 10_000]),
    seed=st.integers(0, 99),
)
def test_every_record_is_accounted_for_and_shards_do_not_depend_on_order(
    tmp_path_factory, raws, width, end, kind, shard_tokens, seed
):
    def written(order):
        blocks = []
        for number in order:
            raw = raws[number]
            lines = [raw[start : start + width] for start in range(0, len(raw), width)]
            blocks.append(end.join([f">r{number} x", *lines]) + end)
        return COMPRESS[kind]("".join(blocks).encode())

    order = list(range(len(raws)))
    folders = [tmp_path_factory.mktemp("split") for _ in range(3)]
    # One folder for all inputs, since the manifest names them.
    path = folders[0] / "input"
    options = {"shard_tokens": shard_tokens, "max_invalid_fraction": 1, "max_unknown_fraction": 1}
    path.write_bytes(written(order))
    first = run(folders[0], path, **options)
    second = run(folders[1], path, **options)
    assert first.files == second.files

    rows = [record["id"] for record in first.records] + [row["id"] for row in first.quarantine]
    assert Counter(rows) == Counter(f"r{number}" for number in order)
    normal = [normalise(raw.encode()).residues for raw in raws]
    stored = [residues for shard in first.shards.values() for residues in shard.residues]
    assert sorted(stored) == sorted({residues for residues in normal if residues})
    by_key = {sequence_key(residues): residues for residues in stored}
    for record in first.records:
        assert by_key[record["key"]] == normal[int(record["id"][1:])]
        assert record["length"] == len(by_key[record["key"]])

    random.Random(seed).shuffle(order)
    path.write_bytes(written(order))
    third = run(folders[2], path, **options)
    shards = {name: data for name, data in first.files.items() if name[0].isdigit()}
    assert shards == {name: data for name, data in third.files.items() if name[0].isdigit()}


# --- ids ----------------------------------------------------------------------------------------


@pytest.mark.fault(29)
def test_an_id_twice_is_refused_naming_both_places(tmp_path):
    error = refusal(tmp_path, b">a\nMKV\n>b\nMKL\n", b">c\nMKV\n>b x\nMKW\n>a\nMKV\n")
    assert "id 'b' was used before" in error.message
    assert f"{tmp_path / '0.fasta'}, line 3" in error.message
    assert (error.path, error.line) == (str(tmp_path / "1.fasta"), 3)
    assert "duplicate_ids: suffix" in error.hint


def test_a_quarantined_record_counts_as_a_user_of_its_id(tmp_path):
    assert refusal(tmp_path, b">a\n\n>a\nMKV\n").line == 3


@pytest.mark.fault(29)
def test_later_records_of_an_id_are_renamed_past_the_ids_that_exist(tmp_path):
    data = b">a\nMK\n>a\nMV\n>a_2\nML\n>a x\n\n>a\nMW\n>b\nMH\n>a_2\nMI\n>a_4\nMP\n"
    result = run(tmp_path, data, duplicate_ids="suffix")
    ids = [record["id"] for record in result.records]
    assert ids == ["a", "a_3", "a_2", "a_6", "b", "a_2_2", "a_4"]
    assert [row["id"] for row in result.quarantine] == ["a_5"]
    assert result.manifest["records"]["renamed"] == 4


def test_equal_hashes_alone_make_no_duplicate(tmp_path, monkeypatch):
    monkeypatch.setattr("virnucpro.sequences.spool.hash_id", lambda name: 0)
    result = run(tmp_path, b">a\nMK\n>b\nMV\n>c\nML\n")
    assert [record["id"] for record in result.records] == ["a", "b", "c"]


def test_suspects_in_several_portions_are_all_renamed(tmp_path, monkeypatch):
    monkeypatch.setattr(identifiers, "_SUSPECTS_AT_ONCE", 7)
    monkeypatch.setattr("virnucpro.sequences.spool._BATCH_RECORDS", 11)
    data = fasta(proteins(60)) + fasta(proteins(60, seed=2)) + fasta(proteins(60, seed=3))
    result = run(tmp_path, data, duplicate_ids="suffix")
    ids = [record["id"] for record in result.records]
    assert ids == [f"p{n}{suffix}" for suffix in ("", "_2", "_3") for n in range(60)]


@pytest.mark.fault(29)
@settings(max_examples=30, deadline=None)
@given(names=st.lists(st.text("a_23", min_size=1, max_size=4), min_size=1, max_size=25))
def test_renamed_ids_are_unique_and_first_ones_stay(tmp_path_factory, names):
    data = "".join(f">{name}\nMKV\n" for name in names).encode()
    result = run(tmp_path_factory.mktemp("ids"), data, duplicate_ids="suffix")
    ids = [record["id"] for record in result.records]
    assert len(set(ids)) == len(names)
    for number, name in enumerate(names):
        if name not in names[:number]:
            assert ids[number] == name
        else:
            assert ids[number].startswith(f"{name}_")
    assert result.manifest["records"]["renamed"] == len(names) - len(set(names))


# --- refusals -----------------------------------------------------------------------------------


@pytest.mark.fault(25)
def test_no_record_is_refused(tmp_path):
    error = refusal(tmp_path, b"", b"\n\n")
    assert error.exit_code == 2
    assert "no record in " in error.message
    assert "0.fasta" in error.message
    assert "1.fasta" in error.message
    assert ">" in error.hint


def test_an_empty_file_among_others_is_warned_of(tmp_path, caplog):
    assert run(tmp_path, b"", b">a\nMKV\n").manifest["inputs"][0]["records"] == 0
    assert "0.fasta: holds no record" in caplog.text


@pytest.mark.fault(25)
def test_only_quarantined_records_are_refused_with_the_counts(tmp_path):
    error = refusal(tmp_path, b">a\n>b\nJJJJJ\n>c\n\n")
    assert "none of 3 records can be used (empty: 2, invalid_letters: 1)" in error.message
    assert "'a', line 1: no residues" in error.hint


DNA = "".join(random.Random(5).choices("ACGT", k=400))
NUCLEOTIDES = {
    "a genome": [DNA * 10],
    "reads": [DNA[n : n + 60] for n in range(100)],
    "lower case": [DNA.lower()],
    "RNA with N": [DNA.replace("T", "U") + "N" * 20],
    "a few other letters": [DNA + "RYKM"],
    "longer than the limit": [DNA * 500],
}


@pytest.mark.parametrize("case", NUCLEOTIDES)
def test_nucleotides_are_refused_unless_meant(tmp_path, case):
    data = fasta(NUCLEOTIDES[case])
    error = refusal(tmp_path, b">p\nMKVLLAGHIW\n", b"\n" + data, input_type="protein")
    assert (error.path, error.line) == (str(tmp_path / "1.fasta"), 2)
    assert "nucleotides" in error.message
    assert "input_type: any" in error.hint
    if case != "longer than the limit":
        assert run(tmp_path, data, input_type="any").records


@pytest.mark.parametrize(
    "sequences",
    [proteins(50), ["GATTACA"], [DNA + "".join(random.Random(6).choices(LETTERS, k=80))]],
    ids=["proteins", "fewer than 50 letters", "under 95%"],
)
def test_proteins_are_not_taken_for_nucleotides(tmp_path, sequences):
    assert len(run(tmp_path, fasta(sequences), input_type="protein").records) == len(sequences)


def test_nucleotides_are_refused_before_the_file_is_read_through(tmp_path):
    # Text that is no FASTA would be refused if it were reached.
    data = fasta(DNA[n % 300 : n % 300 + 60] for n in range(9000)) + b">\n"
    assert "nucleotides" in refusal(tmp_path, data, input_type="protein").message
    data = fasta([DNA * 200] * 20) + b">\n"
    assert "nucleotides" in refusal(tmp_path, data, input_type="protein").message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shard_tokens": 0}, "shard_tokens is 0"),
        ({"max_invalid_fraction": 1.5}, "max_invalid_fraction is 1.5"),
        ({"max_record_residues": 0}, "max_record_residues is 0"),
        ({"input_type": "dna"}, "input_type is 'dna'"),
        ({"duplicate_ids": "drop"}, "duplicate_ids is 'drop'"),
    ],
)
def test_a_parameter_out_of_range_is_refused(tmp_path, options, message):
    assert message in refusal(tmp_path, b">a\nMKV\n", **options).message


def test_a_missing_file_is_refused_before_others_are_read(tmp_path):
    error = refusal(tmp_path, b"not FASTA", tmp_path / "missing.fasta")
    assert error.path == tmp_path / "missing.fasta"
    assert "no FASTA file" in refusal(tmp_path).message


@pytest.mark.fault(22)
@pytest.mark.parametrize("kind", [kind for kind in COMPRESS if kind != "plain"])
def test_a_truncated_archive_leaves_nothing_behind(tmp_path, kind):
    archive = COMPRESS[kind](fasta(proteins(500)))
    assert "truncated" in refusal(tmp_path, archive[:-20]).message


# --- putting in place ---------------------------------------------------------------------------


def test_an_earlier_result_or_an_empty_directory_is_replaced(tmp_path):
    (tmp_path / "shards").mkdir()
    many = run(tmp_path, fasta(proteins(300)), shard_tokens=2000)
    assert len(many.shards) > 1
    (tmp_path / "shards" / ".snakemake_timestamp").touch()
    assert set(run(tmp_path, b">a\nMKV\n").files) == {
        "00000-5b35e3c6fb30.fasta",
        "manifest.json",
        "quarantine.tsv",
        "records",
    }
    assert {path.name for path in tmp_path.iterdir()} == {"0.fasta", "shards", "records.parquet"}


def test_a_directory_with_other_files_is_not_replaced(tmp_path):
    precious = tmp_path / "shards" / "thesis.tex"
    precious.parent.mkdir()
    precious.write_text("all of it")
    error = refusal(tmp_path, b">a\nMKV\n")
    assert "'thesis.tex'" in error.message
    assert precious.read_text() == "all of it"


def test_a_file_that_appears_in_the_directory_meanwhile_is_kept(tmp_path):
    target = tmp_path / "shards"
    with pytest.raises(InputError, match="'notes'"), staged_directory(target) as staging:
        (staging / "manifest.json").touch()
        target.mkdir()
        (target / "notes").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["shards"]
    assert (target / "notes").exists()


def test_a_file_in_the_place_of_the_directory_is_refused(tmp_path):
    (tmp_path / "shards").touch()
    assert "not a directory" in refusal(tmp_path, b">a\nMKV\n").message


def test_records_inside_the_directory_of_shards_are_refused(tmp_path):
    (tmp_path / "0.fasta").write_bytes(b">a\nMKV\n")
    shards = tmp_path / "shards"
    with pytest.raises(InputError, match="replaced as a whole"):
        split([tmp_path / "0.fasta"], sample="s", shards_dir=shards, records=shards / "r.parquet")


def test_a_linked_directory_is_filled_and_the_link_stays(tmp_path):
    (tmp_path / "scratch" / "real").mkdir(parents=True)
    (tmp_path / "shards").symlink_to(tmp_path / "scratch" / "real")
    run(tmp_path, b">a\nMKV\n")
    assert (tmp_path / "shards").is_symlink()
    assert (tmp_path / "scratch" / "real" / "manifest.json").is_file()


@pytest.mark.fault(5)
def test_a_failure_at_any_step_keeps_the_earlier_result(tmp_path, monkeypatch):
    result = run(tmp_path, b">a\nMKV\n")
    before = result.files
    for name in ("write_records", "write_shards", "count_rows", "write_manifest", "choose_shards"):

        def fail(*arguments, **options):
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(split_module, name, fail)
            with pytest.raises(OSError, match="No space left"):
                run(tmp_path, fasta(proteins(30)))
        assert result.files == before
        assert {path.name for path in tmp_path.iterdir()} == {
            "0.fasta",
            "shards",
            "records.parquet",
        }


@pytest.mark.fault(4)
def test_every_file_and_folder_is_synced(tmp_path, monkeypatch):
    synced = set()
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.add(os.fstat(descriptor).st_ino))
    result = run(tmp_path, fasta(proteins(300)), shard_tokens=2000)
    paths = [*result.shards_dir.iterdir(), result.shards_dir, result.records_path, tmp_path]
    assert {path.stat().st_ino for path in paths} <= synced


@pytest.mark.fault(5)
def test_a_full_disk_is_reported_with_the_spool_file(tmp_path):
    script = (
        "import resource, signal, sys\n"
        "from pathlib import Path\n"
        "from virnucpro.sequences import spool\n"
        "from virnucpro.sequences.split import split\n"
        "spool._PENDING_BYTES = 1\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))\n"
        "split([Path('in.fasta')], sample='s', shards_dir=Path('shards'),"
        " records=Path('records.parquet'))\n"
    )
    (tmp_path / "in.fasta").write_bytes(fasta(["MKVLLAGHIW" * 200] * 9))
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 1
    assert ".sequences'" in done.stderr.splitlines()[-1]
    assert {path.name for path in tmp_path.iterdir()} == {"in.fasta"}


def test_files_that_do_not_add_up_are_an_error(tmp_path, monkeypatch):
    def lossy(batch, shards, schema, whole=outputs._with_shard):
        return whole(batch, shards, schema).slice(1)

    monkeypatch.setattr(outputs, "_with_shard", lossy)
    with pytest.raises(DataError, match=r"3 records were read and 0 .* but 2 accepted"):
        run(tmp_path, fasta(proteins(3)))
    assert {path.name for path in tmp_path.iterdir()} == {"0.fasta"}
