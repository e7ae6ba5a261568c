from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.samples import Sample, random_records
from virnucpro.errors import DataError
from virnucpro.merge.shards import check_complete


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
