import hashlib
import logging
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.unit.samples import Sample, random_records
from virnucpro.errors import DataError, InputError
from virnucpro.merge.receipts import (
    ShardEmbeddings,
    check_agreement,
    check_complete,
    read_receipt,
    verify_shard,
)
from virnucpro.plan.plan import read_plan


def verify(sample: Sample, name: str) -> ShardEmbeddings:
    plan = read_plan(sample.plans_dir / f"{name}.parquet")
    return verify_shard(sample.npy(name), sample.embeddings_dir / f"{name}.json", plan)


def test_verified_shard_is_mapped_and_lists_its_quarantined_rows(sample: Sample) -> None:
    failed = 0
    for number, name in enumerate(sample.names):
        shard = verify(sample, name)
        assert isinstance(shard.array, np.memmap)
        for row, residues in enumerate(sample.members[number]):
            if row in shard.quarantined:
                found = shard.quarantined[row]
                assert (found.reason, found.detail) == sample.failed[residues]
                failed += 1
            else:
                np.testing.assert_array_equal(shard.array[row], sample.embedding(residues))
    assert failed == len(sample.failed)


@pytest.mark.fault(7)
def test_one_flipped_bit_is_found_wherever_it_is(sample: Sample) -> None:
    npy = sample.npy("00002")
    whole = npy.read_bytes()
    for place in (0, 90, len(whole) // 2, len(whole) - 1):
        npy.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(DataError, match=r"shard 00002: sha256 differs: .* the receipt"):
            verify(sample, "00002")


@pytest.mark.fault(8)
def test_truncated_shard_is_refused(sample: Sample) -> None:
    npy = sample.npy("00001")
    npy.write_bytes(npy.read_bytes()[:-4])
    with pytest.raises(DataError, match="shard 00001: sha256 differs"):
        verify(sample, "00001")


@pytest.mark.fault(8)
def test_truncated_shard_with_a_fitting_receipt_is_refused(sample: Sample) -> None:
    npy = sample.npy("00001")
    sample.change_array("00001", np.load(npy))
    npy.write_bytes(npy.read_bytes()[:-4])
    digest = hashlib.sha256(npy.read_bytes()).hexdigest()
    sample.change_receipt("00001", array_sha256=digest)
    with pytest.raises(DataError, match=r"00001.npy: is not a plain .npy array"):
        verify(sample, "00001")


class Planted:
    ran = False

    def __reduce__(self) -> tuple[Callable[[str, type, bool], None], tuple[str, type, bool]]:
        return _plant, ("ran", Planted, True)


def _plant(name: str, where: type, value: bool) -> None:
    setattr(where, name, value)


@pytest.mark.fault(38)
@pytest.mark.parametrize("how", ["object_array", "pickle"])
def test_pickled_npy_is_refused_and_never_run(sample: Sample, how: str) -> None:
    npy = sample.npy("00000")
    if how == "pickle":
        npy.write_bytes(pickle.dumps(Planted()))
    else:
        np.save(npy, np.array([Planted()], dtype=object), allow_pickle=True)
    digest = hashlib.sha256(npy.read_bytes()).hexdigest()
    sample.change_receipt("00000", array_sha256=digest)
    with pytest.raises(DataError, match=r"00000.npy: is not a plain .npy array"):
        verify(sample, "00000")
    assert not Planted.ran


@pytest.mark.fault(9)
@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("plan_hash", "00", "plan differs: the plan is [0-9a-f]{32}, the receipt names 00"),
        ("shard", "00009", "shard differs: its file name says 00001, the receipt 00009"),
        ("sequences", 999, r"sequences differs: the plan has \d+, the receipt 999"),
        ("shape", [1, 2, 3], r"shape differs: the array has .*, the receipt \[1, 2, 3\]"),
        ("dtype", "float16", "dtype differs: the array has float32, the receipt float16"),
        ("layers", [3, 6], "sequences and layers differs"),
    ],
)
def test_receipt_that_contradicts_names_both_sides(
    sample: Sample, field: str, value: object, message: str
) -> None:
    sample.change_receipt("00001", **{field: value})
    with pytest.raises(DataError, match=f"shard 00001: {message}"):
        verify(sample, "00001")


@pytest.mark.parametrize("field", ["array_sha256", "quarantined", "layers", "tokens_per_step"])
def test_receipt_without_a_field_is_refused(sample: Sample, field: str) -> None:
    receipt = sample.receipt_of("00001")
    del receipt[field]
    sample.write_receipt("00001", receipt)
    with pytest.raises(DataError, match=f"00001.json: has no {field}"):
        verify(sample, "00001")


@pytest.mark.fault(12)
def test_older_receipt_format_is_a_version_error(sample: Sample) -> None:
    sample.change_receipt("00001", format=0)
    with pytest.raises(InputError, match=r"00001.json: embedding receipt has format 0"):
        verify(sample, "00001")


def test_quarantined_row_of_another_sequence_is_refused(sample: Sample) -> None:
    entry = {"row": 0, "key": "ff" * 16, "reason": "not_finite", "detail": ""}
    sample.change_receipt("00001", quarantined=[entry])
    with pytest.raises(DataError, match="shard 00001: key of row 0 differs"):
        verify(sample, "00001")
    sample.change_receipt("00001", quarantined=[{**entry, "row": 10**6}])
    with pytest.raises(DataError, match="the plan has None"):
        verify(sample, "00001")
    sample.change_receipt("00001", quarantined=[entry, entry])
    with pytest.raises(DataError, match="quarantined rows differs: distinct 1, listed 2"):
        verify(sample, "00001")


def test_array_of_integers_or_two_dimensions_is_refused(sample: Sample) -> None:
    array = np.load(sample.npy("00000"))
    for wrong in (array.astype(np.int64), array[:, 0], array.astype(np.float64)):
        sample.change_array("00000", wrong)
        with pytest.raises(DataError, match="expected float32 or float16"):
            verify(sample, "00000")


@pytest.mark.fault(9)
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("weights_sha256", "ee" * 32),
        ("layers", [5]),
        ("pooling", "max"),
        ("compute_dtype", "bfloat16"),
        ("dtype", "float16"),
        ("model", "esm2_t6_8M_UR50D"),
        ("shape", [3, 1, 8]),
    ],
)
def test_shards_of_different_runs_are_refused_and_both_named(
    sample: Sample, field: str, value: object
) -> None:
    sample.change_receipt("00002", **{field: value})
    receipts = [read_receipt(sample.embeddings_dir / f"{name}.json") for name in sample.names]
    with pytest.raises(DataError, match=r"differs between shards: 00000 has .*, 00002 has "):
        check_agreement(receipts)


def test_other_device_or_tokens_per_step_is_only_reported(
    sample: Sample, caplog: pytest.LogCaptureFixture
) -> None:
    sample.change_receipt("00003", device="NVIDIA H100", tokens_per_step=8192)
    receipts = [read_receipt(sample.embeddings_dir / f"{name}.json") for name in sample.names]
    with caplog.at_level(logging.WARNING):
        execution = check_agreement(receipts)
    assert execution.device == ["cpu", "NVIDIA H100"]
    assert execution.tokens_per_step == [64, 8192]
    assert execution.differing == ["device", "tokens_per_step"]
    assert "shards differ in device: cpu, NVIDIA H100" in caplog.text
    assert "shards differ in tokens_per_step: 64, 8192" in caplog.text


@pytest.mark.fault(39)
def test_missing_files_are_listed(make_sample: Callable[..., Sample], tmp_path: Path) -> None:
    sample = make_sample(random_records(12), shard_count=2)
    check_complete(sample.names, sample.embeddings_dir, (".npy", ".json"))
    sample.npy("00001").unlink()
    (sample.embeddings_dir / "00007.json").write_text("{}")
    (sample.embeddings_dir / ".00003.npy.1.tmp").write_text("left by a killed process")
    with pytest.raises(DataError, match=r"1 missing: 00001\.npy\n"):
        check_complete(sample.names, sample.embeddings_dir, (".npy", ".json"))
    with pytest.raises(DataError, match="4 missing"):
        check_complete(sample.names, tmp_path / "nowhere", (".npy", ".json"))
