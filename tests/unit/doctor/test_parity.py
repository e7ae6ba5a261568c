"""The comparison with the references, by kernels that are right, and by those that are not."""

from dataclasses import fields

import pytest
import torch

from virnucpro.doctor.parity import Agreement, compare_attention, compare_kernels
from virnucpro.model.kernels import Kernels, reference

CPU = torch.device("cpu")
NAMES = [field.name for field in fields(Kernels)]


def altered(name, change):
    """All references, under other names, and one of them with its results changed."""

    def changed(found):
        if isinstance(found, tuple):
            return tuple(map(changed, found))
        return change(found) if found.dtype != torch.float8_e4m3fn else found

    def copy(each):
        original = getattr(reference, each)
        if each == name and change:
            return lambda *arguments, **options: changed(original(*arguments, **options))
        return lambda *arguments, **options: original(*arguments, **options)

    return Kernels(**{each: copy(each) for each in NAMES})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_every_kernel_that_is_right_holds(dtype):
    found = compare_kernels(altered(NAMES[0], None), CPU, dtype, float8=True)
    assert [agreement.name for agreement in found] == NAMES
    assert all(agreement.holds for agreement in found)
    assert compare_attention(lambda *a: reference.packed_attention(*a), CPU, dtype).holds


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x * 1.1,
        lambda x: torch.full_like(x, float("nan")),
        lambda x: x.roll(1, 0),
        lambda x: x[:1],
    ],
    ids=["scaled", "nan", "rows shifted", "rows missing"],
)
@pytest.mark.parametrize("name", NAMES)
def test_kernel_that_is_wrong_does_not_hold(name, change):
    found = compare_kernels(altered(name, change), CPU, torch.bfloat16, float8=True)
    assert [agreement.name for agreement in found if not agreement.holds] == [name]


def test_references_themselves_are_not_compared_nor_float8_where_there_is_none():
    assert compare_kernels(Kernels(), CPU, torch.float16, float8=True) == []
    found = compare_kernels(altered(NAMES[0], None), CPU, torch.float16, float8=False)
    assert [agreement.name for agreement in found] == [n for n in NAMES if "float8" not in n]


def test_attention_that_looks_at_other_sequences_does_not_hold():
    def across(qkv, cos, sin, tiles):
        return reference.packed_attention(qkv, cos, sin, tiles).roll(1, 0)

    assert not compare_attention(across, CPU, torch.float16).holds


def test_not_a_number_does_not_hold():
    assert not Agreement("x", float("nan"), 1.0).holds
