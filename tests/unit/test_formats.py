import pytest

from virnucpro.errors import InputError
from virnucpro.formats import check_format


def test_equal_format_passes():
    check_format("plan", 3, 3)


@pytest.mark.parametrize("found", [2, None, "3"])
def test_other_format_names_both_numbers_and_the_file(found):
    with pytest.raises(InputError, match=rf"p\.parquet.*format {found}.*uses format 3"):
        check_format("plan", found, 3, path="p.parquet")
