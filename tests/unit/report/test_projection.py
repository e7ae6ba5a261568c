import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest

from virnucpro.report import projection
from virnucpro.report.projection import project

INSTALLED = SimpleNamespace(origin="/site-packages/umap/__init__.py")


def write(path: Path, matrix: np.ndarray) -> Path:
    """The parts of embeddings.h5ad that are read; a record's length is its number."""
    with h5py.File(path, "w") as file:
        file["X"] = matrix
        file["obs/length"] = np.arange(len(matrix), dtype=np.int32)
        file["obs/truncated"] = np.arange(len(matrix)) % 3 == 0
    return path


@pytest.fixture
def matrices() -> list[np.ndarray]:
    rng = np.random.default_rng(5)
    stretch = np.diag([9.0, 4.0, 1.0, 0.5, 0.1, 0.1])
    return [rng.normal(size=(n, 6)).astype(np.float32) @ stretch + 100 for n in (70, 5, 30)]


@pytest.fixture
def files(matrices: list[np.ndarray], tmp_path: Path) -> list[Path]:
    return [
        write(tmp_path / f"{number}.h5ad", matrix.astype(np.float32))
        for number, matrix in enumerate(matrices)
    ]


@pytest.fixture(autouse=True)
def without_umap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(projection.importlib.util, "find_spec", lambda _name: None)


def test_components_are_those_of_a_singular_value_decomposition(
    files: list[Path], matrices: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(projection, "_BLOCK", 7)
    found = project(files)
    whole = np.concatenate(matrices)
    centred = whole - whole.mean(axis=0)
    _, singular, rows = np.linalg.svd(centred, full_matrices=False)
    expected = centred @ rows[:2].T
    order = np.argsort(found.sample * 1000 + found.length)  # back to the order of the files
    for axis in range(2):
        ours = found.pca[order, axis]
        sign = np.sign(ours @ expected[:, axis])
        np.testing.assert_allclose(ours, sign * expected[:, axis], atol=1e-3)
    np.testing.assert_allclose(found.explained, (singular**2 / (singular**2).sum())[:2], rtol=1e-4)
    assert found.umap is None
    assert found.rows == 105


def test_every_row_keeps_its_sample_length_and_truncation(files: list[Path]) -> None:
    found = project(files)
    assert sorted(zip(found.sample.tolist(), found.length.tolist(), strict=True)) == [
        (sample, number) for sample, rows in enumerate((70, 5, 30)) for number in range(rows)
    ]
    np.testing.assert_array_equal(found.truncated, found.length % 3 == 0)


def test_a_sample_of_the_rows_is_drawn_and_always_the_same(files: list[Path]) -> None:
    first, second = project(files, rows=20), project(files, rows=20)
    assert first.pca.shape == (20, 2)
    assert first.rows == 105
    assert len(set(zip(first.sample.tolist(), first.length.tolist(), strict=True))) == 20
    np.testing.assert_array_equal(first.pca, second.pca)
    np.testing.assert_array_equal(first.length, second.length)


@pytest.mark.parametrize("rows", [0, 1, 2])
def test_few_rows_are_projected_too(rows: int, tmp_path: Path) -> None:
    matrix = np.arange(rows * 4, dtype=np.float32).reshape(rows, 4)
    found = project([write(tmp_path / "x.h5ad", matrix)])
    assert found.pca.shape == (rows, 2)
    assert np.isfinite(found.pca).all()
    assert np.isfinite(found.explained).all()


def test_umap_is_given_the_components_and_a_seed_where_it_is_installed(
    files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    class UMAP:
        def __init__(self, **options: Any) -> None:
            asked.update(options)

        def fit_transform(self, scores: np.ndarray) -> np.ndarray:
            return np.asarray(scores[:, :2] + 1000, dtype=np.float32)

    module = ModuleType("umap")
    module.UMAP = UMAP
    monkeypatch.setitem(sys.modules, "umap", module)
    monkeypatch.setattr(
        projection.importlib.util, "find_spec", lambda _name: SimpleNamespace(origin="")
    )
    found = project(files)
    np.testing.assert_allclose(found.umap, found.pca + 1000, atol=1e-2)
    assert asked["random_state"] == 0
    assert asked["n_jobs"] == 1
    assert project(files, rows=10).umap is None  # fewer than UMAP's neighbours


def test_real_umap_gives_the_same_map_twice(
    files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("umap", reason="umap-learn is not installed: pip install umap-learn")
    monkeypatch.setattr(
        projection.importlib.util, "find_spec", lambda _name: SimpleNamespace(origin="")
    )
    first, second = project(files).umap, project(files).umap
    assert first is not None
    assert first.shape == (105, 2)
    np.testing.assert_array_equal(first, second)
