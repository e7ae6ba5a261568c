from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest

import virnucpro.merge.ledger as ledger_module
from virnucpro.errors import DataError
from virnucpro.merge.h5ad import H5adWriter, ObsBlock
from virnucpro.merge.ledger import QuarantineRow, check_ledger, write_quarantine
from virnucpro.sequences.outputs import QUARANTINE_COLUMNS


def write_h5ad(path: Path, ids: list[str]) -> None:
    n = len(ids)
    numbers, flags = np.ones(n, np.int32), np.zeros(n, np.bool_)
    block = ObsBlock(ids, ids, numbers, numbers, flags, flags, numbers, numbers, ["00"] * n)
    with H5adWriter(path, rows=n, dim=2, dtype="float32", layers=[1], sample="s", uns={}) as writer:
        writer.write(block, np.zeros((n, 1, 2), np.float32))


def write_tsv(path: Path, ids: list[str]) -> None:
    write_quarantine(path, (QuarantineRow("s", name, "1", "1", "1", "1", "1") for name in ids))


def test_the_rows_are_those_of_split() -> None:
    assert QuarantineRow._fields == QUARANTINE_COLUMNS


@pytest.fixture
def check(tmp_path: Path) -> Callable[..., tuple[int, int]]:
    def run(embedded: list[str], quarantined: list[str], expected: list[str]) -> tuple[int, int]:
        h5ad, tsv = tmp_path / "x.h5ad", tmp_path / "q.tsv"
        write_h5ad(h5ad, embedded)
        write_tsv(tsv, quarantined)

        def ids() -> Iterator[str]:
            return iter(expected)

        return check_ledger(h5ad, tsv, read=len(expected), expected=ids)

    return run


def test_balanced_ledger_counts_rows_of_the_files(check: Callable[..., tuple[int, int]]) -> None:
    assert check(["a", "b"], ["c"], ["a", "b", "c"]) == (2, 1)
    assert check([], ["c"], ["c"]) == (0, 1)


@pytest.mark.parametrize(
    ("embedded", "quarantined", "message"),
    [
        (["a"], ["c"], "1 missing: 'b'"),
        (["a", "b", "d"], ["c"], "1 not in the input: 'd'"),
        (["a", "b", "b"], ["c"], "1 more than once: 'b'"),
        (["a", "b", "c"], ["c"], "1 more than once: 'c'"),
        (["a", "a"], ["c"], r"1 more than once: 'a'\n  1 missing: 'b'"),
        (["a", "d"], ["c"], r"1 missing: 'b'\n  1 not in the input: 'd'"),
        ([], [], "3 missing: 'a', 'b', 'c'"),
    ],
)
def test_unbalanced_ledger_names_the_ids(
    check: Callable[..., tuple[int, int]],
    embedded: list[str],
    quarantined: list[str],
    message: str,
) -> None:
    with pytest.raises(DataError, match=r"ledger: 3 records were read, \d are embedded") as error:
        check(embedded, quarantined, ["a", "b", "c"])
    assert error.match(message)


def test_only_ten_ids_are_listed_but_all_are_counted(
    check: Callable[..., tuple[int, int]],
) -> None:
    with pytest.raises(DataError, match="95 missing") as error:
        check(["0", "1", "2", "3", "4"], [], [str(number) for number in range(100)])
    assert "'5', '6', '7', '8', '9', '10', '11', '12', '13', '14', ...\n" in str(error.value)


def test_equal_hashes_of_different_ids_are_not_taken_for_one_id(
    check: Callable[..., tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_module, "hash", lambda text: len(text), raising=False)
    assert check(["a", "b"], ["c"], ["a", "b", "c"]) == (2, 1)


def test_obs_and_x_of_different_length_are_refused(tmp_path: Path) -> None:
    h5ad, tsv = tmp_path / "x.h5ad", tmp_path / "q.tsv"
    write_h5ad(h5ad, ["a", "b"])
    write_tsv(tsv, [])
    with h5py.File(h5ad, "r+") as file:
        del file["X"]
        file["X"] = np.zeros((3, 2), np.float32)
    with pytest.raises(DataError, match="ledger: X has 3 rows, obs has 2"):
        check_ledger(h5ad, tsv, read=2, expected=lambda: iter(["a", "b"]))
