import csv
import unicodedata
from pathlib import Path

import anndata
import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from tests.unit.samples import Sample, random_records
from virnucpro.errors import InputError
from virnucpro.merge.exports import export, fair_esm, source


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "_BLOCK", 7)


def test_parquet_holds_every_row(sample: Sample, tmp_path: Path) -> None:
    sample.merge(parquet=tmp_path / "x.parquet")
    merged = anndata.read_h5ad(sample.output)
    table = pq.read_table(tmp_path / "x.parquet")
    assert table.column_names == ["id", "key", "length", "truncated", "embedding"]
    assert table["id"].to_pylist() == list(merged.obs_names)
    for name in ("key", "length", "truncated"):
        assert table[name].to_pylist() == merged.obs[name].tolist()
    np.testing.assert_array_equal(np.array(table["embedding"].to_pylist(), np.float32), merged.X)


def test_npy_stands_beside_its_table(sample: Sample, tmp_path: Path) -> None:
    sample.merge(npy=tmp_path / "x.npy")
    merged = anndata.read_h5ad(sample.output)
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy", allow_pickle=False), merged.X)
    with (tmp_path / "x.tsv").open(newline="") as handle:
        rows = list(csv.DictReader(handle, delimiter="\t"))
    assert [row["id"] for row in rows] == list(merged.obs_names)
    assert [int(row["length"]) for row in rows] == merged.obs["length"].tolist()


def test_uniprot_h5_has_a_dataset_a_record(sample: Sample, tmp_path: Path) -> None:
    sample.merge(uniprot_h5=tmp_path / "x.h5")
    merged = anndata.read_h5ad(sample.output)
    with h5py.File(tmp_path / "x.h5") as file:
        assert set(file) == set(merged.obs_names)
        for name, row in zip(merged.obs_names, merged.X, strict=True):
            np.testing.assert_array_equal(file[name][:], row)


@pytest.mark.parametrize("kind", ["parquet", "npy", "uniprot-h5"])
def test_same_rows_give_the_same_bytes(sample: Sample, tmp_path: Path, kind: str) -> None:
    sample.merge()
    for name in ("a.npy", "b.npy"):
        export(kind, sample.output, tmp_path / name)
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()


@pytest.mark.parametrize("kind", ["parquet", "npy", "uniprot_h5"])
def test_exports_of_no_rows_are_empty_files_of_the_format(make_sample, tmp_path, kind) -> None:
    sample = make_sample([("a", "", b"MK")], failed={b"MK": ("not_finite", "NaN")})
    target = tmp_path / "x.npy"
    sample.merge(**{kind: target})
    if kind == "parquet":
        assert pq.read_table(target).num_rows == 0
    elif kind == "npy":
        assert np.load(target).shape == (0, 4)
    else:
        with h5py.File(target) as file:
            assert not len(file)


@pytest.mark.fault(34)
@pytest.mark.parametrize("name", ["a/b", "/", ".", "a\0b"])
def test_uniprot_h5_refuses_ids_that_are_no_names_before_anything_is_written(
    make_sample, tmp_path, name
) -> None:
    sample = make_sample([("fine", "", b"MK"), (name, "", b"MKV")])
    with pytest.raises(InputError, match="the export uniprot-h5 cannot have 1 of the ids") as error:
        sample.merge(uniprot_h5=tmp_path / "out" / "x.h5")
    assert repr(name) in str(error.value)
    assert not sample.output.exists()
    assert not (tmp_path / "out").exists()


def test_ids_with_dots_and_spaces_are_names(make_sample, tmp_path) -> None:
    names = ["..", "a.b", "a b", "é", "#", "-"]
    sample = make_sample([(name, "", b"MK" * (i + 1)) for i, name in enumerate(names)])
    sample.merge(uniprot_h5=tmp_path / "x.h5")
    with h5py.File(tmp_path / "x.h5") as file:
        assert set(file) == set(names)


def test_unknown_export_and_unfit_file_name_are_refused(sample: Sample, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown export 'csv'"):
        sample.merge(csv=tmp_path / "x.csv")
    with pytest.raises(InputError, match=r"needs a name that ends in \.npy"):
        sample.merge(npy=tmp_path / "x.tsv")
    assert not sample.output.exists()


def test_fair_esm_folder_is_read_by_scripts_made_for_extract_py(make_sample, tmp_path) -> None:
    """Names, keys and shapes of https://github.com/facebookresearch/esm, scripts/extract.py."""
    records = [("sp|P1|NAME", "coat protein OS=Phage", b"MKV"), ("plain", "", b"MLL")]
    sample = make_sample(records, layers=(6, 3), dtype="float16")
    sample.merge(fair_esm=tmp_path / "pt")
    merged = anndata.read_h5ad(sample.output)
    for index, label in enumerate(["sp|P1|NAME coat protein OS=Phage", "plain"]):
        found = torch.load(tmp_path / "pt" / f"{label}.pt", weights_only=True)
        assert found.keys() == {"label", "mean_representations"}
        assert found["label"] == label
        assert list(found["mean_representations"]) == [6, 3]
        for layer, matrix in ((6, merged.X), (3, merged.layers["layer_3"])):
            mean = found["mean_representations"][layer]
            assert mean.dtype == torch.float32
            np.testing.assert_array_equal(mean.numpy(), matrix[index].astype(np.float32))


AWKWARD = ["../../up", "/root", ".hidden", "a/b", "a_b", "tab\there", "x" * 400, "ä" * 150, "-n"]


def test_awkward_ids_become_safe_names_and_the_table_says_which(make_sample, tmp_path) -> None:
    letters = "ACDEFGHIK"
    records = [(name, "", f"M{letters[i]}".encode()) for i, name in enumerate(AWKWARD)]
    sample = make_sample(records)
    sample.merge(fair_esm=tmp_path / "pt")
    with (tmp_path / "pt" / "ids.tsv").open(newline="") as handle:
        rows = list(csv.DictReader(handle, delimiter="\t"))
    assert [row["id"] for row in rows] == AWKWARD
    files = [row["file"] for row in rows]
    assert sorted([*files, "ids.tsv"]) == sorted(path.name for path in (tmp_path / "pt").iterdir())
    assert not any(
        name.startswith(".") or "/" in name or len(name.encode()) > 255 for name in files
    )
    for row in rows:
        assert torch.load(tmp_path / "pt" / row["file"], weights_only=True)["label"] == row["id"]
    assert not (tmp_path.parent / "up.pt").exists()


# Pairs of ids whose files would be one: on any file system where white space at the end is lost,
# where case is ignored (macOS, Windows), or where é is one letter however it is written (macOS).
TWINS = [
    ("p1", "p1\u00a0"),
    ("p2", "P2"),
    ("straße", "STRASSE"),
    ("caf\u00e9", "cafe\u0301"),
    ("\u212bx", "\u00c5X"),
    ("end", "end."),
    ("sp", "sp\u3000"),
]


def test_ids_that_some_file_system_takes_for_one_have_files_of_their_own(make_sample, tmp_path):
    ids = [name for pair in TWINS for name in pair]
    letters = "ACDEFGHIKLMNPQ"
    sample = make_sample([(name, "", f"M{letters[i]}".encode()) for i, name in enumerate(ids)])
    sample.merge(fair_esm=tmp_path / "pt")
    merged = anndata.read_h5ad(sample.output)
    with (tmp_path / "pt" / "ids.tsv").open(newline="") as handle:
        rows = {row["id"]: row["file"] for row in csv.DictReader(handle, delimiter="\t")}
    assert list(rows) == ids
    folded = {unicodedata.normalize("NFKD", file).casefold() for file in rows.values()}
    assert len(folded) == len(ids)
    assert not any(Path(file).stem.endswith((" ", "\u00a0", "\u3000")) for file in rows.values())
    for name, vector in zip(merged.obs_names, merged.X, strict=True):
        saved = torch.load(tmp_path / "pt" / rows[name], weights_only=True)
        assert saved["label"] == name
        np.testing.assert_array_equal(next(iter(saved["mean_representations"].values())), vector)


def test_an_id_s_file_has_its_plain_name_where_no_other_is_like_it(make_sample, tmp_path):
    sample = make_sample(
        [("a", "", b"MK"), ("B", "x", b"MKV"), ("b", "y", b"MKL"), ("b.", "", b"M")]
    )
    sample.merge(fair_esm=tmp_path / "pt")
    assert {path.name for path in (tmp_path / "pt").iterdir()} == {
        *("a.pt", "B x.pt", "b y.pt", "b..pt", "ids.tsv"),
    }


def test_fair_esm_folder_is_the_same_twice_and_replaced_as_one(sample, tmp_path) -> None:
    contents = []
    for _ in range(2):
        sample.merge(fair_esm=tmp_path / "pt")
        contents.append({path.name: path.read_bytes() for path in (tmp_path / "pt").iterdir()})
        (tmp_path / "pt" / "of_another_run.pt").write_bytes(b"")
    assert contents[0] == contents[1]
    assert len(contents[0]) == len(anndata.read_h5ad(sample.output)) + 1


def test_fair_esm_files_name_what_was_pooled(make_sample, tmp_path) -> None:
    sample = make_sample(random_records(5), receipt={"pooling": "cls"})
    sample.merge(fair_esm=tmp_path / "cls")
    saved = torch.load(next((tmp_path / "cls").glob("p0*.pt")), weights_only=True)
    assert set(saved) == {"label", "bos_representations"}
    most = make_sample(random_records(5), root=tmp_path / "max", receipt={"pooling": "max"})
    with pytest.raises(InputError, match="the export fair-esm cannot hold vectors of pooling max"):
        most.merge(fair_esm=tmp_path / "fair_esm")
    assert not most.output.exists()


def test_many_files_are_warned_of(sample, tmp_path, monkeypatch, caplog) -> None:
    monkeypatch.setattr(fair_esm, "_MANY_FILES", 10)
    sample.merge(fair_esm=tmp_path / "pt")
    assert f"one file a protein, {len(anndata.read_h5ad(sample.output))} files" in caplog.text


def test_npy_and_parquet_open_in_the_libraries_of_their_users(sample, tmp_path) -> None:
    pandas = pytest.importorskip("pandas")
    sample.merge(npy=tmp_path / "x.npy", parquet=tmp_path / "x.parquet")
    merged = anndata.read_h5ad(sample.output)
    frame = pandas.read_parquet(tmp_path / "x.parquet")
    np.testing.assert_array_equal(np.stack(frame["embedding"].to_numpy()), merged.X)
    table = pandas.read_csv(tmp_path / "x.tsv", sep="\t")
    assert table["id"].tolist() == merged.obs_names.tolist()
