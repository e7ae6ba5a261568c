"""The manifest: what `split` writes is what the later steps read."""

import dataclasses
import json

import pytest

from virnucpro.errors import DataError, InputError
from virnucpro.files import read_json, write_json
from virnucpro.formats import SPLIT_FORMAT
from virnucpro.sequences.manifest import read_manifest
from virnucpro.sequences.split import split


@pytest.fixture
def shards(tmp_path):
    fasta = tmp_path / "in" / "a.faa"
    fasta.parent.mkdir()
    fasta.write_text(">one\nMKV\n>two\nMKVAW\n>again\nMKV\n>empty\n\n")
    split([fasta], sample="s1", shards_dir=tmp_path / "shards", records=tmp_path / "r.parquet")
    return tmp_path / "shards"


def test_what_split_wrote_is_read(shards):
    manifest, written = read_manifest(shards), read_json(shards / "manifest.json")
    found = {"format": SPLIT_FORMAT, **dataclasses.asdict(manifest)}
    assert json.dumps(found) == json.dumps(written)
    assert manifest.inputs[0].name == "a.faa"
    assert manifest.names == [path.stem for path in sorted(shards.glob("*.fasta"))]
    counts = manifest.records
    assert (counts.read, counts.accepted, counts.quarantined, counts.duplicates) == (4, 3, 1, 1)


def test_an_older_or_damaged_manifest_is_refused(shards):
    path = shards / "manifest.json"
    manifest = read_json(path)
    write_json(path, manifest | {"format": 1})
    with pytest.raises(InputError, match="split manifest has format 1"):
        read_manifest(shards)
    write_json(path, manifest | {"shards": [{"name": "00000"}]})
    with pytest.raises(DataError, match=r"manifest\.json: has no shards\[0\]\.sequences"):
        read_manifest(shards)
    path.unlink()
    with pytest.raises(DataError, match=r"manifest\.json: is missing"):
        read_manifest(shards)
