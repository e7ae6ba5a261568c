import hashlib
import io
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import virnucpro.merge.rows as rows_module
import virnucpro.merge.sample as merge_module
from tests.unit.samples import Sample, random_records
from virnucpro.errors import DataError, InputError
from virnucpro.files import write_bytes
from virnucpro.merge.arrays import all_finite
from virnucpro.merge.ledger import read_quarantine
from virnucpro.plan.build import plan_shard
from virnucpro.plan.parameters import PlanParameters
from virnucpro.plan.plan import make_plan, write_plan
from virnucpro.sequences.alphabet import sequence_key
from virnucpro.sequences.manifest import SplitParameters
from virnucpro.sequences.shards import read_shard
from virnucpro.sequences.split import split
from virnucpro.temporary import temporary_name

Make = Callable[..., Sample]


def check_merged(sample: Sample) -> None:
    """Compare the merged file with what the sample was made of."""
    merged = anndata.read_h5ad(sample.output)
    kept = [record for record in sample.records_in if record[2] not in sample.failed]
    assert list(merged.obs_names) == [name for name, *_ in kept]
    assert list(merged.obs["description"]) == [description for _, description, _ in kept]
    limit = sample.max_sequence_length
    for number, (_, _, residues) in enumerate(kept):
        np.testing.assert_array_equal(merged.X[number], sample.embedding(residues)[0])
        row = merged.obs.iloc[number]
        assert row["length"] == len(residues)
        assert row["truncated"] == (len(residues) > limit)
        assert row["tokens"] == min(len(residues), limit) + 2
        assert row["replaced"] == residues.count(b"X")
        assert row["normalised"] == (b"X" in residues)
        assert row["key"] == sequence_key(residues).hex()
        assert row["sample"] == "s1"


def test_rows_stand_in_input_order_with_their_own_embedding(sample: Sample) -> None:
    counts = sample.merge()
    check_merged(sample)
    lost = sum(residues in sample.failed for *_, residues in sample.records_in)
    assert lost >= 2
    assert counts.read == 52
    assert counts.embedded == 50 - lost
    assert counts.quarantined == 2 + lost


def test_quarantine_holds_the_split_rows_and_then_the_failed_ones_in_input_order(
    sample: Sample,
) -> None:
    sample.merge()
    rows = list(read_quarantine(sample.quarantine))
    expected = [
        (name, str(2 * number + 1), str(len(residues)), *sample.failed[residues])
        for number, (name, _, residues) in enumerate(sample.records_in)
        if residues in sample.failed
    ]
    assert [row.id for row in rows[:2]] == ["r1", "r2"]
    found = [(row.id, row.line, row.length, row.reason, row.detail) for row in rows[2:]]
    assert found == expected
    assert {row.file for row in rows} == {"in/a.fasta"}


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    sequences=st.lists(st.text("ACDX", min_size=1, max_size=30), min_size=1, max_size=25),
    shard_count=st.sampled_from([1, 2, 8]),
    layers=st.sampled_from([(6,), (6, 3)]),
    dtype=st.sampled_from(["float32", "float16"]),
    failing=st.integers(0, 3),
)
def test_any_sample_is_merged_whole(
    tmp_path_factory: pytest.TempPathFactory,
    sequences: list[str],
    shard_count: int,
    layers: tuple[int, ...],
    dtype: str,
    failing: int,
) -> None:
    records = [(f"r{i}", f"d {i}", letters.encode()) for i, letters in enumerate(sequences)]
    failed = {residues: ("not_finite", "NaN") for *_, residues in records[:failing]}
    sample = Sample(
        tmp_path_factory.mktemp("any") / "run",
        records,
        shard_count=shard_count,
        layers=layers,
        dtype=dtype,
        failed=failed,
    )
    counts = sample.merge()
    check_merged(sample)
    assert counts.embedded + counts.quarantined == len(records)


class SplitSample(Sample):
    """A sample whose shards, records and plans come from the steps themselves."""

    def _write_split(self) -> None:
        fasta = self.root / "in" / "a.fasta"
        text = "".join(
            f">{name} {description}\n{residues.decode()}\n"
            for name, description, residues in self.records_in
        )
        write_bytes(fasta, (text + "".join(f">{name}\n" for name in self.refused)).encode())
        self.shards_dir.rmdir()
        split(
            [fasta],
            sample="s1",
            shards_dir=self.shards_dir,
            records=self.records,
            parameters=SplitParameters(shard_tokens=400),
        )
        shards = sorted(self.shards_dir.glob("*.fasta"))
        self.names = [path.stem for path in shards]
        self.members = [read_shard(path).residues for path in shards]

    def _write_plan(self, name: str, members: list[bytes]) -> None:
        plan_shard(
            self.shards_dir / f"{name}.fasta",
            self.plans_dir / f"{name}.parquet",
            self.plans_dir / f"{name}.json",
            PlanParameters(64, self.max_sequence_length),
        )


def test_files_of_split_and_plan_are_merged(tmp_path: Path) -> None:
    records = random_records(60)
    failed = {records[3][2]: ("not_finite", "NaN")}
    sample = SplitSample(tmp_path / "run", records, refused=["r1", "r2"], failed=failed)
    assert len(sample.names) > 1
    counts = sample.merge()
    check_merged(sample)
    rows = list(read_quarantine(sample.quarantine))
    assert counts.read == 62
    assert [row.id for row in rows[:3]] == ["r1", "r2", "p3"]
    assert len({row.file for row in rows}) == 1


@pytest.mark.fault(43)
def test_one_record_of_one_residue(make_sample: Make) -> None:
    sample = make_sample([("only", "", b"M")])
    assert sample.merge().embedded == 1
    check_merged(sample)


def test_sample_of_which_nothing_could_be_embedded(make_sample: Make) -> None:
    sample = make_sample([("a", "", b"MK")], failed={b"MK": ("not_finite", "NaN")})
    assert sample.merge().quarantined == 1
    assert anndata.read_h5ad(sample.output).shape == (0, 4)


@pytest.mark.fault(40)
def test_number_of_shards_does_not_change_rows(make_sample: Make, tmp_path: Path) -> None:
    records = random_records(30)
    matrices = []
    for count in (1, 2, 16):
        sample = make_sample(records, shard_count=count, root=tmp_path / str(count))
        sample.merge()
        matrices.append(anndata.read_h5ad(sample.output))
    for other in matrices[1:]:
        np.testing.assert_array_equal(matrices[0].X, other.X)
        assert matrices[0].obs.equals(other.obs)


@pytest.mark.fault(43)
def test_few_open_files_and_small_blocks_give_the_same_rows(
    make_sample: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows_module, "_OPEN_ARRAYS", 1)
    monkeypatch.setattr(rows_module, "_BLOCK_BYTES", 40)
    sample = make_sample(random_records(40), shard_count=8)
    sample.merge()
    check_merged(sample)


def test_merging_twice_gives_the_same_bytes(sample: Sample) -> None:
    digests = []
    for _ in range(2):
        sample.merge()
        files = (sample.output, sample.quarantine)
        digests.append([hashlib.sha256(path.read_bytes()).hexdigest() for path in files])
        for path in files:
            path.unlink()
    assert digests[0] == digests[1]


def test_provenance_names_files_without_folders_and_says_that_demo_is_no_biology(
    sample: Sample,
) -> None:
    sample.merge()
    uns = anndata.read_h5ad(sample.output).uns["virnucpro"]
    assert list(uns["inputs"]["file"]) == ["a.fasta"]
    assert list(uns["inputs"]["sha256"]) == ["ab" * 32]
    assert "no biology" in uns["notice"]
    assert bool(uns["demo"]) is True
    assert uns["weights_sha256"] == "cd" * 32
    assert list(uns["layers"]) == [6]
    assert uns["plan"]["token_budget"] == 64
    assert str(sample.root).encode() not in sample.output.read_bytes()


def test_layers_after_the_first_are_kept_by_their_number(make_sample: Make) -> None:
    sample = make_sample(random_records(10), layers=(6, 3, 1))
    sample.merge()
    merged = anndata.read_h5ad(sample.output)
    assert set(merged.layers) == {"layer_3", "layer_1"}
    for number, (*_, residues) in enumerate(sample.records_in):
        np.testing.assert_array_equal(
            merged.layers["layer_1"][number], sample.embedding(residues)[2]
        )


ODD_IDS = [
    "../x",
    "/etc/x",
    "x" * 300,
    "a\x01\x1f\x7fb",
    "a\x85\u2028b",
    "é€𝄞",
    ".",
    "a/b",
    "'\"$(x);",
]


@pytest.mark.fault(33)
def test_odd_ids_survive_unchanged_in_obs_and_quarantine(make_sample: Make) -> None:
    records = [(name, f"of {name}", b"M" * (i + 1)) for i, name in enumerate(ODD_IDS)]
    sample = make_sample(records)
    sample.merge()
    check_merged(sample)
    assert sorted(path.name for path in sample.root.iterdir()) == [
        "embeddings",
        "embeddings.h5ad",
        "plan",
        "quarantine.tsv",
        "records.parquet",
        "shards",
    ]
    failed = make_sample(
        records,
        failed={residues: ("not_finite", "a\rb") for *_, residues in records},
        root=sample.root.parent / "failed",
    )
    failed.merge()
    rows = list(read_quarantine(failed.quarantine))
    assert [row.id for row in rows] == ODD_IDS
    assert {row.detail for row in rows} == {"a\rb"}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_lines_say_how_many_rows_of_which_sample_were_written(
    sample: Sample, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="virnucpro"):
        rows = sample.merge().embedded
    assert f"s1: checking {len(sample.names)} shards in " in caplog.text
    assert f"s1: writing {rows} rows in " in caplog.text


def test_bars_are_shown_on_a_terminal_and_taken_away_also_after_an_error(
    sample: Sample, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    with caplog.at_level(logging.INFO, logger="virnucpro"):
        sample.merge()
        sample.npy("00002").write_bytes(b"")
        with pytest.raises(DataError):
            sample.merge()
    for bar in ("s1: checking   0%|", "s1: writing   0%|"):
        assert bar in terminal.getvalue()
    assert terminal.getvalue().endswith("\r")


def test_the_quiet_see_no_progress(
    sample: Sample, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    with caplog.at_level(logging.WARNING, logger="virnucpro"):
        sample.merge()
    assert terminal.getvalue() == ""


def test_nul_in_an_id_becomes_a_visible_sign_and_is_warned_about(
    make_sample: Make, caplog: pytest.LogCaptureFixture
) -> None:
    sample = make_sample([("a\0b", "c\0", b"MK"), ("ab", "", b"MK")])
    assert sample.merge().with_nul == 2
    merged = anndata.read_h5ad(sample.output)
    assert list(merged.obs_names) == ["a␀b", "ab"]
    assert list(merged.obs["description"]) == ["c␀", ""]
    assert "hold a NUL" in caplog.text


def test_nul_that_makes_two_ids_equal_is_refused(make_sample: Make) -> None:
    sample = make_sample([("a\0", "", b"MK"), ("a␀", "", b"MK")])
    with pytest.raises(DataError, match="1 more than once: 'a␀'"):
        sample.merge()


Rows = list[dict[str, Any]]


def drop(rows: Rows) -> Rows:
    return rows[:5] + rows[6:]


def double(rows: Rows) -> Rows:
    return [*rows[:5], rows[4], *rows[5:]]


def double_and_drop(rows: Rows) -> Rows:
    return [*rows[:5], {**rows[4], "line": rows[5]["line"]}, *rows[6:]]


def swap(rows: Rows) -> Rows:
    return [*rows[:5], rows[6], rows[5], *rows[7:]]


def swap_keys(rows: Rows) -> Rows:
    whole = [row for row in rows if row["length"] <= 20]
    one = whole[0]
    two = next(row for row in whole if row["length"] != one["length"])
    keys = {one["id"]: two, two["id"]: one}
    return [
        {**row, **{name: keys.get(row["id"], row)[name] for name in ("key", "shard")}}
        for row in rows
    ]


@pytest.mark.parametrize("change", [drop, double, double_and_drop, swap, swap_keys])
def test_changed_records_make_the_merge_fail(
    make_sample: Make, change: Callable[[Rows], Rows]
) -> None:
    sample = make_sample(random_records(20), shard_count=2)
    sample.write_records(change(sample.record_rows()))
    with pytest.raises(DataError):
        sample.merge()
    assert not sample.output.exists()
    assert not sample.quarantine.exists()


@pytest.mark.parametrize("change", [drop, double])
def test_number_of_records_is_compared_before_anything_is_written(
    make_sample: Make, change: Callable[[Rows], Rows], monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = make_sample(random_records(20))
    rows = change(sample.record_rows())
    sample.write_records([{**row, "line": number} for number, row in enumerate(rows)])
    monkeypatch.delattr(rows_module, "H5adWriter")
    with pytest.raises(DataError, match=rf"has {len(rows)} records, the manifest 20"):
        sample.merge()


@pytest.mark.parametrize("change", ["drop", "double", "swap"])
def test_rows_changed_in_an_array_make_the_merge_fail(sample: Sample, change: str) -> None:
    array = np.load(sample.npy("00001"))
    changed = {
        "drop": array[:-1],
        "double": np.concatenate([array, array[-1:]]),
        "swap": array[[1, 0, *range(2, len(array))]],
    }[change]
    sample.write_array("00001", changed)
    with pytest.raises(DataError, match="shard 00001: sha256 differs"):
        sample.merge()
    if change != "swap":
        sample.change_array("00001", changed)
        with pytest.raises(DataError, match="shard 00001: sequences and layers differs"):
            sample.merge()


@pytest.mark.parametrize("change", ["drop", "add", "other"])
def test_plan_of_other_sequences_makes_the_merge_fail(sample: Sample, change: str) -> None:
    members = list(sample.members[1])
    extra = next(
        residues
        for residues in (b"W" * n for n in range(1, 99))
        if residues not in members and residues not in sample.members[0]
    )
    members = {"drop": members[1:], "add": [*members, extra], "other": [*members[1:], extra]}[
        change
    ]
    members.sort(key=sequence_key)
    plan = make_plan(
        [sequence_key(residues).hex() for residues in members],
        np.array([len(residues) for residues in members]),
        PlanParameters(64, 20),
    )
    write_plan(plan, sample.plans_dir / "00001.parquet")
    with pytest.raises(DataError, match="shard 00001: plan differs"):
        sample.merge()
    # With arrays and receipts that fit the wrong plan, the records still give it away.
    sample.failed.clear()
    sample.write_embeddings("00001", members)
    with pytest.raises(DataError, match=r"shard 00001: (the manifest has|records and plan)"):
        sample.merge()


@pytest.mark.fault(9)
def test_plans_of_different_parameters_are_refused(sample: Sample) -> None:
    members = sample.members[2]
    plan = make_plan(
        [sequence_key(residues).hex() for residues in members],
        np.array([len(residues) for residues in members]),
        PlanParameters(128, 20),
    )
    write_plan(plan, sample.plans_dir / "00002.parquet")
    sample.change_receipt("00002", plan_hash=plan.content_hash)
    with pytest.raises(
        DataError, match=r"plans differ in their parameters: 00000 has .* 00002 has"
    ):
        sample.merge()


@pytest.mark.fault(39)
@pytest.mark.parametrize("suffix", [".npy", ".json"])
def test_missing_shard_is_listed(sample: Sample, suffix: str) -> None:
    (sample.embeddings_dir / f"00003{suffix}").unlink()
    with pytest.raises(DataError, match=rf"1 missing: 00003\{suffix}"):
        sample.merge()


@pytest.mark.fault(39)
def test_plans_and_embeddings_of_other_inputs_may_lie_beside_those_that_are_merged(
    sample: Sample,
) -> None:
    sample.merge()
    expected = sample.output.read_bytes()
    (sample.plans_dir / "00004-0123456789ab.parquet").write_bytes(b"")
    (sample.embeddings_dir / "00004-0123456789ab.npy").write_bytes(b"")
    sample.merge()
    assert sample.output.read_bytes() == expected


@pytest.mark.fault(9)
def test_two_shards_that_changed_names_are_refused(sample: Sample) -> None:
    for suffix in (".npy", ".json"):
        one, two = (sample.embeddings_dir / f"0000{number}{suffix}" for number in (1, 2))
        keep = one.read_bytes()
        one.write_bytes(two.read_bytes())
        two.write_bytes(keep)
    with pytest.raises(DataError, match="shard 00001: shard differs"):
        sample.merge()


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_seen_and_the_largest_number_is_not(dtype: Any, bad: float) -> None:
    limits = np.finfo(dtype)
    fine = [0.0, -0.0, limits.max, limits.min, limits.smallest_subnormal, -1.0]
    values = np.array(fine, dtype).reshape(3, 1, 2)
    assert all_finite(values)
    assert all_finite(values[:0])
    values[1, 0, 1] = bad
    assert not all_finite(values)


def test_nan_row_that_no_receipt_lists_is_refused(sample: Sample) -> None:
    array = np.load(sample.npy("00002"))
    listed = {entry["row"] for entry in sample.receipt_of("00002")["quarantined"]}
    row = next(row for row in range(len(array)) if row not in listed)
    array[row, 0, 1] = np.inf
    sample.change_array("00002", array)
    with pytest.raises(DataError, match=f"shard 00002: row {row} is not finite"):
        sample.merge()


@pytest.mark.fault(12)
def test_older_manifest_is_a_version_error(sample: Sample) -> None:
    path = sample.shards_dir / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 0}))
    with pytest.raises(InputError, match="split manifest has format 0"):
        sample.merge()


@pytest.mark.fault(3)
def test_failed_merge_leaves_the_earlier_result_and_no_temporary_file(sample: Sample) -> None:
    sample.merge()
    before = (sample.output.read_bytes(), sample.quarantine.read_bytes())
    array = np.load(sample.npy("00002"))
    array[:] = np.nan
    sample.change_array("00002", array)
    with pytest.raises(DataError):
        sample.merge()
    assert (sample.output.read_bytes(), sample.quarantine.read_bytes()) == before
    assert not list(sample.root.glob(".*.tmp"))


def test_rows_lost_on_the_way_to_the_quarantine_are_found_in_the_file(
    sample: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = merge_module.write_quarantine
    monkeypatch.setattr(
        merge_module, "write_quarantine", lambda path, rows: write(path, list(rows)[:-1])
    )
    lost = [name for name, _, residues in sample.records_in if residues in sample.failed][-1]
    with pytest.raises(DataError, match=rf"ledger: 52 records were read(.|\n)*1 missing: '{lost}'"):
        sample.merge()
    assert not sample.output.exists()


def test_quarantine_of_split_is_never_overwritten(sample: Sample) -> None:
    sample.quarantine = sample.shards_dir / "quarantine.tsv"
    before = sample.quarantine.read_bytes()
    with pytest.raises(InputError, match="would overwrite"):
        sample.merge()
    assert sample.quarantine.read_bytes() == before


def test_damaged_records_file_is_refused(sample: Sample) -> None:
    whole = sample.records.read_bytes()
    for damaged in (whole[:-20], whole[:20] + bytes([whole[20] ^ 1]) + whole[21:]):
        sample.records.write_bytes(damaged)
        with pytest.raises(DataError, match=r"records.parquet: is not what `split` wrote: sha256"):
            sample.merge()
    sample.records.unlink()
    with pytest.raises(DataError, match=r"records.parquet: is missing"):
        sample.merge()


def test_what_killed_jobs_left_beside_the_shards_is_removed(sample: Sample) -> None:
    """A job that was overtaken and then killed: no other writes there again."""
    path = sample.embeddings_dir / temporary_name(sample.npy("00000"))
    path.write_bytes(b"x")
    sample.merge()
    assert not path.exists()
