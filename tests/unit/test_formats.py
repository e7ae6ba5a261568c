import json
from dataclasses import dataclass

import pytest

from virnucpro.errors import DataError, InputError
from virnucpro.formats import check_format, parse, read_as


@dataclass(frozen=True)
class Part:
    name: str
    share: float


@dataclass(frozen=True)
class Whole:
    number: int
    flag: bool
    parts: list[Part]
    counts: dict[str, int]
    anything: dict[str, object]
    known: float | None
    late: str | None = None


VALUE = {
    "number": 1,
    "flag": True,
    "parts": [{"name": "a", "share": 0.5}, {"name": "b", "share": 1}],
    "counts": {"x": 2},
    "anything": {"y": [1], "z": None, "flag": False},
    "known": None,
}


def test_equal_format_passes():
    check_format("plan", 3, 3)


@pytest.mark.parametrize("found", [2, None, "3"])
def test_other_format_names_both_numbers_and_the_file(found):
    with pytest.raises(InputError, match=rf"p\.parquet.*format {found}.*uses format 3"):
        check_format("plan", found, 3, path="p.parquet")


def test_json_is_read_into_the_dataclass_that_describes_it(tmp_path):
    path = tmp_path / "whole.json"
    path.write_text(json.dumps({"format": 3, "more": "is left out", **VALUE}))
    parts = [Part("a", 0.5), Part("b", 1)]
    whole = Whole(1, True, parts, {"x": 2}, VALUE["anything"], None)
    assert read_as(Whole, path, "whole", 3) == whole
    with pytest.raises(InputError, match=r"whole\.json: whole has format 3"):
        read_as(Whole, path, "whole", 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"number": "1"}, "number is '1', expected <class 'int'>"),
        ({"number": True}, "number is True"),
        ({"number": None}, "number is None"),
        ({"flag": 1}, "flag is 1"),
        ({"known": "1"}, "known is '1'"),
        ({"late": 1}, "late is 1"),
        ({"counts": {"x": 1.5}}, r"counts\['x'\] is 1.5"),
        ({"parts": {}}, "parts is {}"),
        ({"parts": [{"name": "a", "share": 1}, 2]}, r"parts\[1\] is 2"),
        ({"parts": [{"name": "a"}]}, r"has no parts\[0\].share"),
    ],
)
def test_a_field_of_another_type_is_named_with_its_file(change, message):
    with pytest.raises(DataError, match=rf"x\.json: {message}"):
        parse(Whole, VALUE | change, "x.json")


def test_every_field_without_a_default_is_needed():
    for name in VALUE:
        with pytest.raises(DataError, match=f"has no {name}"):
            parse(Whole, {key: value for key, value in VALUE.items() if key != name}, "x.json")
