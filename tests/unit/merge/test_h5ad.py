import time
import warnings
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pytest

from virnucpro.errors import DataError
from virnucpro.merge.h5ad import OBS_COLUMNS, H5adWriter, ObsBlock

UNS = {
    "text": "é, line\nbreak",
    "none": None,
    "yes": True,
    "number": 3,
    "fraction": 0.5,
    "names": ["a", "b"],
    "numbers": [1, 2],
    "nothing": [],
    "inner": {"deeper": {"text": ""}},
}


def block(first: int, count: int) -> ObsBlock:
    numbers = np.arange(first, first + count, dtype=np.int32)
    ids = [f"id {number}" for number in numbers]
    flags = numbers % 2 == 0
    return ObsBlock(ids, ids, numbers, numbers + 2, flags, ~flags, numbers, numbers / 100, ids)


def write(path: Path, rows: int, *, blocks: list[int], dtype: str = "float32") -> np.ndarray:
    rng = np.random.default_rng(0)
    embeddings = rng.normal(size=(rows, 2, 5)).astype(dtype)
    with H5adWriter(
        path, rows=rows, dim=5, dtype=dtype, layers=[33, 20], sample="s", uns={"x": UNS}
    ) as writer:
        first = 0
        for count in blocks:
            writer.write(block(first, count), embeddings[first : first + count])
            first += count
    return embeddings


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("backed", [None, "r"])
def test_anndata_reads_every_part_without_a_warning(
    tmp_path: Path, dtype: str, backed: Any
) -> None:
    path = tmp_path / "x.h5ad"
    embeddings = write(path, 7, blocks=[3, 4], dtype=dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = anndata.read_h5ad(path, backed=backed)
        np.testing.assert_array_equal(data.X[:], embeddings[:, 0])
        np.testing.assert_array_equal(data.layers["layer_20"][:], embeddings[:, 1])
    assert data.X.dtype == dtype
    assert list(data.obs.columns) == list(OBS_COLUMNS)
    assert list(data.var_names) == [f"esm2_{number}" for number in range(5)]
    assert list(data.obs_names) == [f"id {number}" for number in range(7)]
    assert data.obs["truncated"].tolist() == [number % 2 == 0 for number in range(7)]
    assert data.obs["normalised"].dtype == bool
    assert data.obs["tokens"].tolist() == list(range(2, 9))
    assert data.obs["sample"].tolist() == ["s"] * 7


def test_uns_comes_back_with_its_types(tmp_path: Path) -> None:
    write(tmp_path / "x.h5ad", 1, blocks=[1])
    uns = anndata.read_h5ad(tmp_path / "x.h5ad").uns["x"]
    assert uns["text"] == UNS["text"]
    assert "none" not in uns
    assert uns["yes"] is True or uns["yes"].dtype == bool
    assert uns["number"] == 3
    assert uns["fraction"] == 0.5
    assert list(uns["names"]) == ["a", "b"]
    assert list(uns["numbers"]) == [1, 2]
    assert len(uns["nothing"]) == 0
    assert uns["inner"] == {"deeper": {"text": ""}}


def test_file_written_by_anndata_from_it_holds_the_same(tmp_path: Path) -> None:
    write(tmp_path / "x.h5ad", 7, blocks=[7])
    data = anndata.read_h5ad(tmp_path / "x.h5ad")
    data.write_h5ad(tmp_path / "y.h5ad")
    again = anndata.read_h5ad(tmp_path / "y.h5ad")
    np.testing.assert_array_equal(data.X, again.X)
    assert data.obs.equals(again.obs)


def test_x_is_contiguous_so_that_it_can_be_mapped(tmp_path: Path) -> None:
    embeddings = write(tmp_path / "x.h5ad", 7, blocks=[2, 5])
    with h5py.File(tmp_path / "x.h5ad") as file:
        assert file["X"].chunks is None
        offset = file["X"].id.get_offset()
    mapped = np.memmap(tmp_path / "x.h5ad", np.float32, "r", offset, (7, 5))
    np.testing.assert_array_equal(mapped, embeddings[:, 0])


def test_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    write(tmp_path / "x", 2000, blocks=[900, 1100])
    time.sleep(1.1)  # HDF5 notes times in seconds
    write(tmp_path / "y", 2000, blocks=[900, 1100])
    assert (tmp_path / "x").read_bytes() == (tmp_path / "y").read_bytes()


def test_file_with_rows_missing_is_never_finished(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="3 of 7 rows were written"):
        write(tmp_path / "x.h5ad", 7, blocks=[3])
