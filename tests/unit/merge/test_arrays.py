import hashlib
import pickle
from collections.abc import Callable

import numpy as np
import pytest

from tests.unit.samples import Sample
from virnucpro.embed.receipt import ShardReceipt
from virnucpro.errors import DataError, InputError
from virnucpro.merge.arrays import open_array, verify_shard
from virnucpro.plan.plan import read_plan


def verify(sample: Sample, name: str) -> ShardReceipt:
    plan = read_plan(sample.plans_dir / f"{name}.parquet")
    return verify_shard(sample.npy(name), sample.embeddings_dir / f"{name}.json", plan)


def test_verified_shard_is_mapped_and_lists_its_quarantined_rows(sample: Sample) -> None:
    failed = 0
    for number, name in enumerate(sample.names):
        quarantined = verify(sample, name).quarantined_by_row()
        array = open_array(sample.npy(name))
        assert isinstance(array, np.memmap)
        for row, residues in enumerate(sample.members[number]):
            if row in quarantined:
                found = quarantined[row]
                assert (found.reason, found.detail) == sample.failed[residues]
                failed += 1
            else:
                np.testing.assert_array_equal(array[row], sample.embedding(residues))
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
