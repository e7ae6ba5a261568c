"""From embeddings.h5ad into a store and out of it again."""

import dataclasses
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import anndata
import h5py
import numpy as np
import pytest

import virnucpro.merge.store_import as import_module
from tests.unit.samples import Sample, random_records
from virnucpro.embed.receipt import read_receipt
from virnucpro.errors import DataError, InputError
from virnucpro.files import write_json
from virnucpro.merge.store_export import export_h5ad
from virnucpro.merge.store_import import import_h5ad
from virnucpro.store.request import Request
from virnucpro.store.store import Store

RECORDS = random_records(60)
FAILED = {RECORDS[3][2]: ("not_finite", "NaN")}
REQUEST = Request(
    weights_sha256="cd" * 32,
    layers=[6, 3],
    pooling="mean",
    pseudo_perplexity="one-pass",
    compute_dtype="float32",
    output_dtype="float16",
    max_sequence_length=20,
    long_sequences="window",
    window_overlap=3,
    tokens_per_step=64,
    device="cpu",
    threads=1,
    backend="sdpa",
    torch="2.13.0",
    model="demo",
    demo=True,
)


def make(make_sample: Callable[..., Sample], **receipt: object) -> Sample:
    return make_sample(
        RECORDS,
        shard_count=4,
        failed=FAILED,
        layers=(6, 3),
        dtype="float16",
        long_sequences="window",
        window_overlap=3,
        extras=("pseudo_perplexity",),
        receipt={"request": asdict(REQUEST), **receipt},
    )


def write_fasta(path: Path, records: list[tuple[str, str, bytes]]) -> Path:
    path.write_text("".join(f">{name} {text}\n{seq.decode()}\n" for name, text, seq in records))
    return path


def export(folder: Path, store: Store, fasta: Path, **options: object) -> Path:
    output = folder / "out.h5ad"
    quarantine = folder / "out.tsv"
    export_h5ad(
        *(store, REQUEST, [fasta]), output=output, quarantine=quarantine, sample="s1", **options
    )
    return output


def test_what_is_imported_is_exported_without_computing(
    make_sample: Callable[..., Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(import_module, "_BLOCK_BYTES", 100)
    sample = make(make_sample)
    sample.merge()
    store = tmp_path / "store"
    distinct = {seq for *_, seq in RECORDS} - set(FAILED)
    assert import_h5ad(sample.output, store) == len(distinct)

    new = ("new", "not known", b"MKVLAWWW")
    renamed = [(f"other{n}", text, seq) for n, (_, text, seq) in enumerate(reversed(RECORDS))]
    output = export(tmp_path, Store([store]), write_fasta(tmp_path / "x.faa", [new, *renamed]))
    found, before = anndata.read_h5ad(output), anndata.read_h5ad(sample.output)
    rows = {key: row for row, key in enumerate(before.obs["key"])}
    same = [rows[key] for key in found.obs["key"]]
    assert found.obs_names.tolist() == [i for i, _, seq in renamed if seq not in FAILED]
    assert found.X.tobytes() == before.X[same].tobytes()
    assert found.layers["layer_3"].tobytes() == before.layers["layer_3"][same].tobytes()
    for column in ("length", "tokens", "windows", "truncated", "pseudo_perplexity"):
        assert found.obs[column].tolist() == before.obs[column].iloc[same].tolist(), column
    assert found.uns["virnucpro"]["request"] == before.uns["virnucpro"]["request"]
    text = (tmp_path / "out.tsv").read_text()
    assert text.count("not_in_store") == 1 + sum(seq in FAILED for *_, seq in RECORDS)
    assert "\tnew\t" in text


def test_an_export_can_be_imported_again(
    make_sample: Callable[..., Sample], tmp_path: Path
) -> None:
    sample = make(make_sample)
    sample.merge()
    import_h5ad(sample.output, tmp_path / "store")
    output = export(tmp_path, Store([tmp_path / "store"]), write_fasta(tmp_path / "x", RECORDS))
    import_h5ad(output, tmp_path / "again")
    names = [
        sorted(path.relative_to(tmp_path / store) for path in (tmp_path / store).rglob("*.npy"))
        for store in ("store", "again")
    ]
    assert names[0] == names[1]
    assert names[0]


def test_chosen_ids_are_exported_alone(make_sample: Callable[..., Sample], tmp_path: Path) -> None:
    sample = make(make_sample)
    sample.merge()
    import_h5ad(sample.output, tmp_path / "store")
    store, fasta = Store([tmp_path / "store"]), write_fasta(tmp_path / "x.faa", RECORDS)
    output = export(tmp_path, store, fasta, ids=["p9", "p40", "p12"])
    assert anndata.read_h5ad(output).obs_names.tolist() == ["p9", "p12", "p40"]
    with pytest.raises(InputError, match="2 ids are not in the FASTA files: n1, n2"):
        export(tmp_path, store, fasta, ids=["p9", "n2", "n1"])


def test_a_request_without_rows_cannot_be_exported(tmp_path: Path) -> None:
    fasta = write_fasta(tmp_path / "x.faa", RECORDS)
    with pytest.raises(InputError, match="no store has rows of the request"):
        export(tmp_path, Store([tmp_path / "store"]), fasta)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.faa"]


@pytest.mark.parametrize("how", ["none", "one shard without", "shards that differ"])
def test_rows_of_which_the_request_is_not_known_are_refused(
    make_sample: Callable[..., Sample], tmp_path: Path, how: str
) -> None:
    sample = make(make_sample, **({"request": None} if how == "none" else {}))
    if how == "one shard without":
        sample.change_receipt(sample.names[1], request=None)
    elif how == "shards that differ":
        other = dataclasses.replace(REQUEST, tokens_per_step=32)
        sample.change_receipt(sample.names[1], request=asdict(other), tokens_per_step=32)
    sample.merge()
    with h5py.File(sample.output) as file:
        assert "request" not in file["uns/virnucpro"]
    with pytest.raises(InputError, match="does not say what all its rows were computed with"):
        import_h5ad(sample.output, tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_close_rows_are_flagged_in_the_file_and_not_imported(
    make_sample: Callable[..., Sample], tmp_path: Path
) -> None:
    sample = make(make_sample)
    close = {sample.members[1][0], sample.members[1][2], sample.members[3][1]}
    assert not close & set(FAILED)
    for number, rows in enumerate([[], [0, 2], [], [1]]):
        sample.change_receipt(sample.names[number], close=rows, known=len(rows))
    assert read_receipt(sample.embeddings_dir / f"{sample.names[1]}.json").close == [0, 2]
    sample.merge()
    flags = anndata.read_h5ad(sample.output).obs["from_close_request"]
    expected = [seq in close for *_, seq in RECORDS if seq not in FAILED]
    assert flags.tolist() == expected
    distinct = {seq for *_, seq in RECORDS} - set(FAILED)
    assert import_h5ad(sample.output, tmp_path / "store") == len(distinct - close)


def test_without_a_store_the_file_has_no_flags(make_sample: Callable[..., Sample]) -> None:
    sample = make(make_sample)
    sample.merge()
    assert "from_close_request" not in anndata.read_h5ad(sample.output).obs


def test_files_that_are_none_of_ours_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.h5ad").write_text("text")
    with pytest.raises(InputError, match="cannot be read as HDF5"):
        import_h5ad(tmp_path / "text.h5ad", tmp_path / "store")
    anndata.AnnData(np.zeros((2, 2))).write_h5ad(tmp_path / "other.h5ad")
    with pytest.raises(InputError, match="does not say"):
        import_h5ad(tmp_path / "other.h5ad", tmp_path / "store")
    other = anndata.AnnData(np.zeros((2, 2), np.float16))
    other.uns["virnucpro"] = {"request": json.dumps(asdict(REQUEST))}
    other.write_h5ad(tmp_path / "half.h5ad")
    with pytest.raises(DataError, match=r"is not an embeddings\.h5ad of this package"):
        import_h5ad(tmp_path / "half.h5ad", tmp_path / "store")


def test_numbers_of_another_format_are_refused(
    make_sample: Callable[..., Sample], tmp_path: Path
) -> None:
    other = asdict(dataclasses.replace(REQUEST, output_dtype="float32"))
    sample = make(make_sample, request=other)
    sample.merge()
    with pytest.raises(DataError, match="has other numbers than it says"):
        import_h5ad(sample.output, tmp_path / "store")


def test_a_receipt_with_a_damaged_request_is_named(make_sample: Callable[..., Sample]) -> None:
    sample = make(make_sample)
    path = sample.embeddings_dir / f"{sample.names[0]}.json"
    receipt = sample.receipt_of(sample.names[0])
    receipt["request"]["layers"] = "6"
    write_json(path, receipt)
    with pytest.raises(DataError, match="layers is '6'"):
        sample.merge()
