"""The plan cache: addressed by content, verified, and never the reason of a failure."""

import dataclasses
import hashlib

import numpy as np
import pytest

from virnucpro.errors import DataError
from virnucpro.files import read_json, write_json
from virnucpro.formats import PLAN_FORMAT
from virnucpro.plan import build, parameters, table
from virnucpro.plan import report as report_module
from virnucpro.plan.build import plan_shard
from virnucpro.plan.cache import CacheEntry
from virnucpro.plan.parameters import PlanParameters
from virnucpro.sequences.shards import shard_digits, write_shard
from virnucpro.sequences.split import split

PARAMETERS = PlanParameters(24, 20)


def letters(seed):
    rng = np.random.default_rng(seed)
    return [rng.choice([*b"LAGVSERTID"], size).astype(np.uint8).tobytes() for size in range(1, 19)]


def named_by_content(path):
    return path.rename(
        path.with_stem(f"00003-{hashlib.sha256(path.read_bytes()).hexdigest()[:12]}")
    )


@pytest.fixture
def shard(tmp_path):
    write_shard(tmp_path / "x.fasta", letters(0))
    return named_by_content(tmp_path / "x.fasta")


@pytest.fixture
def entry(tmp_path, shard):
    return CacheEntry(tmp_path / "cache", shard, PARAMETERS)


@pytest.fixture
def plan(tmp_path, shard):
    """Plan the shard with the cache; gives the bytes of plan and report."""

    def plan(shard=shard, parameters=PARAMETERS):
        paths = tmp_path / "plan.parquet", tmp_path / "plan.json"
        plan_shard(shard, *paths, parameters, cache_dir=tmp_path / "cache")
        return [path.read_bytes() for path in paths]

    return plan


def test_shards_of_split_are_known_by_their_names(tmp_path):
    fasta = tmp_path / "in.faa"
    fasta.write_bytes(b"".join(b">%d\n%b\n" % pair for pair in enumerate(letters(1))))
    split([fasta], sample="s", shards_dir=tmp_path / "shards", records=tmp_path / "r.parquet")
    (shard,) = (tmp_path / "shards").glob("*.fasta")
    digits = shard_digits(shard)
    assert hashlib.sha256(shard.read_bytes()).hexdigest().startswith(digits)
    assert shard_digits(shard.rename(tmp_path / "own name.fasta")) == digits
    shard.write_bytes(b"")
    shard = (tmp_path / "own name.fasta").rename(shard)
    shard.write_bytes(b"nobody reads this")
    assert shard_digits(shard) == digits


def test_a_hit_reads_no_shard_and_plans_nothing(plan, shard, monkeypatch, caplog):
    first = plan()
    for name in ("read_shard", "make_plan", "efficiency_report"):
        monkeypatch.setattr(build, name, None)
    shard.chmod(0)
    monkeypatch.setattr("virnucpro.sequences.shards.sha256_of", None)
    assert plan() == first
    assert "is not used" not in caplog.text


def test_the_same_sequences_under_another_name_are_a_hit_with_the_name_in_the_report(
    plan, shard, tmp_path, monkeypatch
):
    content, report = plan()
    other = shard.rename(tmp_path / "own name.fasta")
    monkeypatch.setattr(build, "make_plan", None)
    found, renamed = plan(other)
    assert found == content
    assert read_json(tmp_path / "plan.json")["shard"] == "own name"
    assert len(renamed) != len(report)


def test_the_address_depends_on_everything_that_decides_a_plan(tmp_path, shard, monkeypatch):
    def address(shard=shard, **changes):
        changed = dataclasses.replace(PARAMETERS, **changes)
        return CacheEntry(tmp_path, shard, changed).address

    write_shard(tmp_path / "y.fasta", letters(1))
    addresses = [
        address(),
        address(named_by_content(tmp_path / "y.fasta")),
        address(token_budget=25),
        address(max_sequence_length=19),
        address(long_sequences="window"),
        address(long_sequences="window", window_overlap=1),
        address(algorithm="other"),
    ]
    monkeypatch.setattr(parameters, "PLAN_FORMAT", PLAN_FORMAT + 1)
    addresses.append(address())
    monkeypatch.undo()
    monkeypatch.setattr("pyarrow.__version__", "0")
    addresses.append(address())
    monkeypatch.undo()
    assert address() == addresses[0]
    shard.write_bytes(shard.read_bytes()[:-2])
    addresses.append(address())
    assert len(set(addresses)) == len(addresses)


def test_a_shard_that_is_missing_is_named(tmp_path, shard):
    for missing in (shard, tmp_path / "own name.fasta"):
        missing.unlink(missing_ok=True)
        with pytest.raises(DataError, match=missing.name):
            CacheEntry(tmp_path / "cache", missing, PARAMETERS)


@pytest.mark.fault(11)
@pytest.mark.parametrize("file", ["plan_path", "report_path"])
@pytest.mark.parametrize("kept", [0, 4, 300])
def test_a_damaged_file_is_told_made_again_and_replaced(plan, entry, caplog, file, kept):
    first = plan()
    path = getattr(entry, file)
    whole = path.read_bytes()
    path.write_bytes(whole[:kept])
    assert entry.get() is None
    assert "is not used and made again" in caplog.text
    assert path.name in caplog.text
    assert plan() == first
    assert path.read_bytes() == whole


@pytest.mark.fault(12)
def test_a_plan_of_another_format_is_told_and_not_used(plan, entry, caplog, monkeypatch):
    plan()
    for module, what in ((table, "plan"), (report_module, "plan report")):
        monkeypatch.setattr(module, "PLAN_FORMAT", PLAN_FORMAT + 1)
        assert entry.get() is None
        assert f"{what} has format {PLAN_FORMAT}" in caplog.text
        monkeypatch.undo()


@pytest.mark.fault(11)
@pytest.mark.parametrize("files", [["plan_path"], ["report_path"], ["plan_path", "report_path"]])
@pytest.mark.parametrize("other", ["parameters", "shard"])
def test_a_plan_of_another_address_is_told_and_not_used(
    plan, entry, tmp_path, caplog, files, other
):
    plan()
    if other == "parameters":
        stranger = CacheEntry(
            tmp_path / "cache", tmp_path / entry_name(entry), PlanParameters(25, 20)
        )
    else:
        write_shard(tmp_path / "y.fasta", letters(1))
        stranger = CacheEntry(
            tmp_path / "cache", named_by_content(tmp_path / "y.fasta"), PARAMETERS
        )
    plan(tmp_path / f"{stranger.shard}.fasta", stranger.parameters)
    for file in files:
        getattr(entry, file).write_bytes(getattr(stranger, file).read_bytes())
    assert entry.get() is None
    assert "is not used and made again" in caplog.text


def entry_name(entry):
    return f"{entry.shard}.fasta"


def test_an_entry_that_was_not_finished_is_no_hit(plan, entry, caplog):
    plan()
    entry.report_path.unlink()
    assert entry.get() is None
    assert "is not used" not in caplog.text


def test_a_report_changed_by_hand_is_not_used(plan, entry, caplog):
    plan()
    write_json(entry.report_path, read_json(entry.report_path) | {"tokens": "many"}, sealed=True)
    assert entry.get() is None
    assert "is 'many', expected" in caplog.text


def test_a_cache_that_cannot_be_written_is_told_and_no_error(tmp_path, plan, shard, caplog):
    expected = plan()
    (tmp_path / "file").write_text("in the way")
    paths = tmp_path / "b.parquet", tmp_path / "b.json"
    plan_shard(shard, *paths, PARAMETERS, cache_dir=tmp_path / "file")
    assert "not kept in the cache" in caplog.text
    assert [path.read_bytes() for path in paths] == expected


def test_an_entry_that_cannot_be_read_is_told_and_no_error(entry, caplog):
    entry.report_path.mkdir(parents=True)
    assert entry.get() is None
    assert "is not used and made again" in caplog.text
