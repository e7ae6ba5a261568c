"""`virnucpro store` as a user calls it."""

import json

import anndata
from click.testing import CliRunner

from tests.unit.store.stores import (
    REQUEST,
    SCORED,
    add,
    fresh,
    make_keys,
    segments_in,
    taken,
    values_of,
)
from virnucpro.cli import cli
from virnucpro.errors import DataError
from virnucpro.sequences.alphabet import sequence_key
from virnucpro.store.store import Store


def call(*arguments):
    return CliRunner().invoke(cli, ["store", *map(str, arguments)])


def test_status_says_what_there_is(tmp_path):
    add(fresh(tmp_path), range(10))
    add(fresh(tmp_path), range(7), SCORED)
    add(fresh(tmp_path), range(1000, 2234))
    result = call("status", tmp_path)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    (line,) = (line for line in lines if line.startswith(REQUEST.id[:12]))
    assert line.split()[1:4] == ["1,244", "2", "0.00"]
    assert "demo, layers 6, mean, float32 to float32, up to 1022 residues (truncate)" in line
    assert "4096 tokens a step on cpu, torch 2.13.0" in line
    entries = json.loads(call("status", tmp_path, "--json").stdout)
    assert {entry["id"]: entry["rows"] for entry in entries} == {REQUEST.id: 1244, SCORED.id: 7}
    assert {entry["id"]: entry["request"]["layers"] for entry in entries}[SCORED.id] == [3, 6]


def test_verify_ends_with_an_error_until_the_damage_is_removed(tmp_path):
    add(fresh(tmp_path), range(10))
    add(fresh(tmp_path), range(10, 20))
    assert call("verify", tmp_path).exit_code == 0
    damaged = segments_in(tmp_path)[0]
    (damaged / "crc32.npy").write_bytes(b"")
    result = call("verify", tmp_path)
    assert isinstance(result.exception, DataError)
    assert "1 segments cannot be used" in str(result.exception)
    assert call("verify", tmp_path, "--remove").exit_code == 0
    assert not damaged.exists()
    assert call("verify", tmp_path).exit_code == 0


def test_compact_and_drop(tmp_path):
    for start in range(0, 30, 10):
        add(fresh(tmp_path), range(start, start + 10))
    assert call("compact", tmp_path).exit_code == 0
    assert len(segments_in(tmp_path)) == 1
    assert taken(fresh(tmp_path), range(30)).all()
    assert call("drop", tmp_path, REQUEST.id[:4]).exit_code == 0
    assert segments_in(tmp_path) == []


def test_export_and_import(tmp_path):
    """Rows that a run added, as a file, and back into another store."""
    proteins = [b"MKVLA", b"MKKLL", b"MAAAV"]
    fasta = tmp_path / "in.faa"
    fasta.write_text("".join(f">p{n}\n{seq.decode()}\n" for n, seq in enumerate(proteins)))
    keys = make_keys(range(2)).copy()
    for row, key in enumerate(sorted(map(sequence_key, proteins[:2]))):
        keys[row] = list(key)
    store = tmp_path / "store"
    Store([store]).add(SCORED, keys, values_of(keys, SCORED))
    (tmp_path / "ids").write_text("p1\n\np2\n")
    output = ["--output", tmp_path / "x.h5ad", "--quarantine", tmp_path / "x.tsv"]
    result = call("export", store, SCORED.id[:5], fasta, *output, "--ids", tmp_path / "ids")
    assert result.exit_code == 0, result.exception
    assert anndata.read_h5ad(tmp_path / "x.h5ad").obs_names.tolist() == ["p1"]
    assert "not_in_store" in (tmp_path / "x.tsv").read_text()
    assert call("import", tmp_path / "again", tmp_path / "x.h5ad").exit_code == 0
    assert fresh(tmp_path / "again").look_up(SCORED, keys).found.sum() == 1
