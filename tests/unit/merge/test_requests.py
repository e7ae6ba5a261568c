"""Requests: no result of another request is there once a request is."""

import pytest

from virnucpro.errors import DataError
from virnucpro.merge.requests import Request, check_request, read_request, withdraw


@pytest.mark.fault(45, 46)
def test_earlier_results_and_requests_are_gone_when_the_new_request_is_there(tmp_path):
    requests = tmp_path / "requests"
    requests.mkdir()
    (requests / "results-old.json").write_text("{}")
    (requests / "plans-old.json").write_text("{}")
    (tmp_path / "embeddings.h5ad").write_text("earlier")
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "summary.html").write_text("earlier")
    results = [tmp_path / name for name in ("embeddings.h5ad", "report", "absent.tsv")]
    new = requests / "results-new.json"
    assert withdraw(results, new, "0123") == results[:2]
    assert not any(path.exists() for path in results)
    assert sorted(path.name for path in requests.iterdir()) == ["plans-old.json", new.name]
    assert read_request(new) == Request("0123")
    assert withdraw(results, new, "0123") == []


def test_results_of_a_request_that_was_withdrawn_meanwhile_are_not_put_in_place(tmp_path):
    first, second = (tmp_path / f"results-{name}.json" for name in ("first", "second"))
    withdraw([], first, "1")
    check_request(first)
    withdraw([], second, "2")
    with pytest.raises(DataError, match="withdrawn while its results were made"):
        check_request(first)


def test_what_cannot_be_removed_leaves_no_new_request(tmp_path, monkeypatch):
    (tmp_path / "embeddings.h5ad").write_text("earlier")
    monkeypatch.setattr("os.unlink", lambda _path: (_ for _ in ()).throw(PermissionError(13, "no")))
    with pytest.raises(PermissionError):
        withdraw([tmp_path / "embeddings.h5ad"], tmp_path / "results-new.json", "1")
    assert not (tmp_path / "results-new.json").exists()
