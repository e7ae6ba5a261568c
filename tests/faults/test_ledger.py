"""Rows are removed, doubled and swapped: merge accounts for every record, and fails with its id."""

import numpy as np
import pytest

from tests.unit.samples import Sample, random_records
from virnucpro.errors import DataError, InputError
from virnucpro.files import read_json
from virnucpro.merge import rows as rows_module
from virnucpro.plan.plan import read_plan


@pytest.fixture
def sample(tmp_path):
    return Sample(tmp_path / "run", random_records(40), shard_count=2)


def rows_of(sample, name):
    return np.load(sample.npy(name))


def refused(sample):
    """Merge; gives the error's text, after a look that nothing was put in place."""
    with pytest.raises((DataError, InputError)) as caught:
        sample.merge()
    assert not sample.output.exists()
    assert not sample.quarantine.exists()
    return str(caught.value)


CHANGES = {
    "removed": lambda rows: rows[:-1],
    "doubled": lambda rows: np.concatenate([rows, rows[-1:]]),
    "swapped": lambda rows: rows[::-1],
    "moved": lambda rows: np.roll(rows, 1, axis=0),
}


@pytest.mark.fault(39)
@pytest.mark.parametrize("change", CHANGES)
def test_rows_changed_in_an_array_name_the_shard(sample, change):
    np.save(sample.npy("00001"), CHANGES[change](rows_of(sample, "00001")))
    assert "shard 00001: sha256 differs" in refused(sample)


@pytest.mark.fault(39)
@pytest.mark.parametrize("change", ["removed", "doubled"])
def test_rows_changed_with_a_receipt_that_fits_are_counted(sample, change):
    sample.change_array("00001", CHANGES[change](rows_of(sample, "00001")))
    assert "shard 00001: sequences and layers differs" in refused(sample)


@pytest.mark.fault(39)
def test_arrays_of_two_shards_swapped_with_their_receipts_are_told_apart(sample):
    first, second = sample.embeddings_dir / "00000", sample.embeddings_dir / "00001"
    for suffix in (".npy", ".json"):
        kept = first.with_suffix(suffix).read_bytes()
        first.with_suffix(suffix).write_bytes(second.with_suffix(suffix).read_bytes())
        second.with_suffix(suffix).write_bytes(kept)
    assert "shard 00000: shard differs" in refused(sample)
    for name in ("00000", "00001"):  # even where the receipts are made to say so
        sample.change_receipt(name, shard=name)
    assert "shard 00000: plan differs" in refused(sample)


def drop(rows):
    del rows[5]


def double(rows):
    rows.insert(6, {**rows[5], "line": rows[5]["line"] + 1})


def swap(rows):
    rows[5]["id"], rows[6]["id"] = rows[6]["id"], rows[5]["id"]
    rows[5], rows[6] = rows[6], rows[5]


@pytest.mark.fault(39)
@pytest.mark.parametrize("edit", [drop, double, swap])
def test_records_changed_with_a_manifest_that_fits_are_found(sample, edit):
    rows = sample.record_rows()
    edit(rows)
    sample.write_records(rows)
    text = refused(sample)
    count = f"has {len(rows)} records, the manifest 40"
    assert count in text or "not in input order" in text


@pytest.mark.fault(39)
@pytest.mark.parametrize("fault", ["missing", "more than once"])
def test_rows_lost_or_doubled_while_merging_are_named_by_id(sample, monkeypatch, fault):
    """The ledger reads the file that was written, whatever the code that wrote it believes."""
    honest = rows_module._obs_block

    def forgetful(block, index, numbers):
        obs, chosen = honest(block, index, numbers)
        obs.id[3] = obs.id[4] if fault == "more than once" else "p_unknown"
        return obs, chosen

    monkeypatch.setattr(rows_module, "_obs_block", forgetful)
    text = refused(sample)
    assert "1 missing: 'p3'" in text
    if fault == "more than once":
        assert "1 more than once: 'p4'" in text
    else:
        assert "1 not in the input: 'p_unknown'" in text


@pytest.mark.fault(39)
def test_a_record_in_both_files_is_named(sample, monkeypatch):
    quarantine = sample.shards_dir / "quarantine.tsv"
    text = quarantine.read_text()
    quarantine.write_text(text + "s1\tp7\tin/a.fasta\t900\t0\tempty\tno residues\n")
    assert "'p7'" in refused(sample)


@pytest.mark.fault(40)
def test_one_shard_or_eight_give_the_same_rows(tmp_path):
    import anndata

    records = random_records(60)
    merged = []
    for count in (1, 8):
        sample = Sample(tmp_path / f"{count}", records, shard_count=count)
        plans = [read_plan(sample.plans_dir / f"{name}.parquet") for name in sample.names]
        assert len({plan.content_hash for plan in plans}) == len(plans)
        sample.merge()
        assert len(read_json(sample.shards_dir / "manifest.json")["shards"]) == count
        merged.append(anndata.read_h5ad(sample.output))
    one, eight = merged
    assert list(one.obs_names) == list(eight.obs_names) == [name for name, *_ in records]
    np.testing.assert_array_equal(one.X, eight.X)
