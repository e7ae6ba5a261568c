from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.unit.samples import Sample, random_records


@pytest.fixture
def make_sample(tmp_path: Path) -> Callable[..., Sample]:
    def make(records: list[tuple[str, str, bytes]], **options: Any) -> Sample:
        return Sample(options.pop("root", tmp_path / "run"), records, **options)

    return make


@pytest.fixture
def sample(make_sample: Callable[..., Sample]) -> Sample:
    """Fifty records in four shards, two refused by split, two that could not be embedded."""
    records = random_records(50)
    failed = {
        records[3][2]: ("not_finite", "row is NaN in float32 too"),
        records[7][2]: ("out_of_memory", "one sequence alone does not fit"),
    }
    return make_sample(records, shard_count=4, refused=["r1", "r2"], failed=failed)
