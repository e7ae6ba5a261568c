"""Residues, windows and scores in the merged files."""

from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

import virnucpro.merge.residues as residues_module
from tests.unit.samples import Sample, random_records
from virnucpro.errors import DataError, InputError
from virnucpro.files import sha256_of

EXTRAS = ("residues", "pseudo_perplexity")


@pytest.fixture(params=["truncate", "window"])
def rich(request, make_sample) -> Sample:
    """Shards with everything that can be asked for, and two sequences that failed."""
    records = random_records(50)
    failed = {records[3][2]: ("not_finite", "NaN"), records[7][2]: ("not_finite", "NaN")}
    return make_sample(
        records,
        shard_count=4,
        refused=["r1"],
        failed=failed,
        layers=(6, 3),
        dtype="float16",
        long_sequences=request.param,
        window_overlap=3,
        extras=EXTRAS,
    )


def kept(sample: Sample) -> list[tuple[str, bytes]]:
    return [(name, seq) for name, _, seq in sample.records_in if seq not in sample.failed]


@pytest.mark.parametrize("block", [100, 1 << 20])
def test_every_record_finds_its_residues_and_each_sequence_is_there_once(
    rich: Sample, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(residues_module, "_BLOCK_BYTES", block)
    monkeypatch.setattr(residues_module, "_BLOCK_ROWS", 7)
    path = rich.root / "residues.h5"
    rich.merge(path)
    with h5py.File(path) as file:
        assert sorted(file) == ["end", "id", "layer_3", "layer_6", "start"]
        assert file["id"].asstr()[:].tolist() == [name for name, _ in kept(rich)]
        distinct = {seq for _, seq in kept(rich)}
        total = sum(len(rich.residues(seq)) for seq in distinct)
        assert file["layer_6"].shape == file["layer_3"].shape == (total, rich.dim)
        assert file["layer_6"].dtype == np.float16
        assert file.attrs["model"] == "demo"
        assert "no biology" in file.attrs["notice"]
        places = {}
        for row, (_, seq) in enumerate(kept(rich)):
            first, end = int(file["start"][row]), int(file["end"][row])
            assert places.setdefault(seq, (first, end)) == (first, end)
            np.testing.assert_array_equal(file["layer_6"][first:end], rich.residues(seq)[:, 0])
            np.testing.assert_array_equal(file["layer_3"][first:end], rich.residues(seq)[:, 1])
        assert sorted(places.values())[0][0] == 0
        assert sum(end - first for first, end in places.values()) == total


def test_obs_has_the_columns_that_were_asked_for(rich: Sample) -> None:
    rich.merge(rich.root / "residues.h5")
    obs = anndata.read_h5ad(rich.output).obs
    windowed = rich.long_sequences == "window"
    assert list(obs.columns[-3:]) == ["pseudo_perplexity", "residues_start", "residues_end"]
    assert ("windows" in obs) == windowed
    for number, (_, seq) in enumerate(kept(rich)):
        row = obs.iloc[number]
        assert row["pseudo_perplexity"] == rich.perplexity(seq)
        assert row["residues_end"] - row["residues_start"] == len(rich.residues(seq))
        if windowed:
            # windows of 20 that share 3: as few as reach the end
            count = 1 + max(-(-(len(seq) - 20) // 17), 0)
            assert (row["windows"], row["truncated"]) == (count, False)
            assert row["tokens"] == count * (min(len(seq), 20) + 2)


def test_without_wishes_there_is_none_of_it(sample: Sample) -> None:
    sample.merge()
    obs = anndata.read_h5ad(sample.output).obs
    assert list(obs.columns)[-1] == "key"
    path = sample.root / "residues.h5"
    with pytest.raises(InputError, match="the shards have no residues"):
        sample.merge(path)
    assert not path.exists()


def test_residues_may_stay_in_the_shards(rich: Sample) -> None:
    rich.merge()
    assert "residues_start" not in anndata.read_h5ad(rich.output).obs


def test_the_same_shards_give_the_same_bytes(rich: Sample) -> None:
    paths = [rich.root / name for name in ("a.h5", "b.h5")]
    for path in paths:
        rich.merge(path)
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_exports_carry_the_scores(rich: Sample, tmp_path: Path) -> None:
    rich.merge(rich.root / "residues.h5", parquet=tmp_path / "e.parquet", npy=tmp_path / "e.npy")
    expected = [rich.perplexity(seq) for _, seq in kept(rich)]
    assert pq.read_table(tmp_path / "e.parquet")["pseudo_perplexity"].to_pylist() == expected
    table = pd.read_csv(tmp_path / "e.tsv", sep="\t")
    np.testing.assert_allclose(table["pseudo_perplexity"], expected, rtol=1e-6)


@pytest.mark.fault(7)
@pytest.mark.parametrize("name", EXTRAS)
def test_a_damaged_or_missing_array_is_named_and_not_merged(rich: Sample, name: str) -> None:
    path = rich.beside("00001", name)
    whole = bytearray(path.read_bytes())
    whole[-1] ^= 1
    path.write_bytes(whole)
    with pytest.raises(DataError, match=f"shard 00001: sha256 of {name} differs"):
        rich.merge(rich.root / "residues.h5")
    path.unlink()
    with pytest.raises(DataError, match=f"00001.{name}.npy: {name} is missing"):
        rich.merge(rich.root / "residues.h5")
    assert not rich.output.exists()


def test_arrays_of_another_length_than_the_plan_are_refused(rich: Sample) -> None:
    for name in EXTRAS:
        path = rich.beside("00002", name)
        whole = np.load(path)
        np.save(path, whole[:-1])
        receipt = rich.receipt_of("00002")

        rich.change_receipt("00002", extras=receipt["extras"] | {name: sha256_of(path)})
        with pytest.raises(DataError, match=f"shard 00002: {name} differs"):
            rich.merge(rich.root / "residues.h5")
        np.save(path, whole)
        rich.change_receipt("00002", extras=receipt["extras"])


def test_residues_that_are_not_finite_are_refused(rich: Sample) -> None:

    path = rich.beside("00003", "residues")
    values = np.load(path)
    ok = next(seq for seq in rich.members[3] if seq not in rich.failed)
    before = sum(len(rich.residues(seq)) for seq in rich.members[3][: rich.members[3].index(ok)])
    values[before, 0, 0] = np.inf
    np.save(path, values)
    extras = rich.receipt_of("00003")["extras"] | {"residues": sha256_of(path)}
    rich.change_receipt("00003", extras=extras)
    with pytest.raises(DataError, match="a residue is not finite"):
        rich.merge(rich.root / "residues.h5")


def test_shards_of_different_wishes_are_refused(rich: Sample) -> None:
    rich.change_receipt("00001", pseudo_perplexity="none")
    with pytest.raises(DataError, match="pseudo_perplexity differs between shards"):
        rich.merge()
