import logging

import pytest

from tests.unit.samples import Sample
from virnucpro.embed.receipt import read_receipt
from virnucpro.errors import DataError
from virnucpro.merge.execution import check_execution


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
        check_execution(receipts)


def test_other_device_or_tokens_per_step_is_only_reported(
    sample: Sample, caplog: pytest.LogCaptureFixture
) -> None:
    sample.change_receipt("00003", device="NVIDIA H100", tokens_per_step=8192)
    receipts = [read_receipt(sample.embeddings_dir / f"{name}.json") for name in sample.names]
    with caplog.at_level(logging.WARNING):
        execution = check_execution(receipts)
    assert execution.device == ["cpu", "NVIDIA H100"]
    assert execution.tokens_per_step == [64, 8192]
    assert execution.differing == ["device", "tokens_per_step"]
    assert "shards differ in device: cpu, NVIDIA H100" in caplog.text
    assert "shards differ in tokens_per_step: 64, 8192" in caplog.text
