"""The plain-torch references against torch's own operations, and the package without triton."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from virnucpro.model.kernels import attention_tiles, reference


def rotary_tables(positions, head_dim):
    frequency = 10000.0 ** (-torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    angle = torch.outer(torch.arange(positions, dtype=torch.float32), frequency)
    return angle.cos(), angle.sin()


def attend_one(qkv, cos, sin):
    """One sequence in float64 through torch's own attention; qkv [n, 3, H, D]."""
    n = len(qkv)
    cos, sin = (torch.cat((t[:n], t[:n]), 1).double().unsqueeze(1) for t in (cos, sin))
    q, k, v = qkv.double().unbind(1)

    def rotate(x):
        half = x.shape[-1] // 2
        return x * cos + torch.cat((-x[..., half:], x[..., :half]), -1) * sin

    q, k, v = (x.transpose(0, 1) for x in (rotate(q), rotate(k), v))
    return F.scaled_dot_product_attention(q, k, v).transpose(0, 1).reshape(n, -1)


@pytest.mark.parametrize("head_dim", [16, 24])
def test_attention_reference_is_torchs_attention_of_each_sequence_alone(head_dim):
    torch.manual_seed(0)
    cu = np.array([0, 3, 73, 74, 140], dtype=np.int32)
    qkv = torch.randn(140, 3, 2, head_dim)
    cos, sin = rotary_tables(80, head_dim)
    tiles = torch.from_numpy(attention_tiles(cu, 64, 8))
    got = reference.packed_attention(qkv, cos, sin, tiles)
    for a, b in zip(cu[:-1].tolist(), cu[1:].tolist(), strict=True):
        expected = attend_one(qkv[a:b], cos, sin)
        torch.testing.assert_close(got[a:b].double(), expected, rtol=1e-5, atol=1e-5)


def test_attention_reference_writes_only_rows_of_its_tiles():
    qkv = torch.randn(10, 3, 2, 16)
    tiles = torch.from_numpy(attention_tiles(np.array([0, 6], dtype=np.int32), 64, 4))
    out = torch.full((10, 32), float("nan"))
    assert reference.packed_attention(qkv, *rotary_tables(8, 16), tiles, out=out) is out
    assert out[:6].isfinite().all()
    assert out[6:].isnan().all()


def test_norm_reference_adds_the_shift_in_float32():
    x, shift = torch.full((1, 4), 1000.0).half(), torch.tensor([0.1, 0.2, 0.3, 0.4])
    got = reference.layer_norm(x, torch.ones(4), torch.zeros(4), 0.0, deferred_bias=shift)
    # In float16, 1000.1 to 1000.4 would be 1000 and 1000.5.
    expected = (shift - shift.mean()) / shift.std(correction=0)
    torch.testing.assert_close(got[0].float(), expected, rtol=2e-3, atol=2e-3)


def test_gelu_reference_is_the_erf_form_not_the_tanh_form():
    x = torch.linspace(-4, 4, 4001).reshape(1, -1)
    bias = torch.full((4001,), 0.25)
    shifted = (x + bias).double()
    exact = 0.5 * shifted * (1 + torch.erf(shifted / 2**0.5))
    got = reference.bias_gelu(x, bias).double()
    assert (got - exact).abs().max() < 1e-6
    assert (got - F.gelu(shifted, approximate="tanh")).abs().max() > 1e-4
    kept = x.clone()
    assert torch.equal(reference.bias_gelu(kept, bias, inplace=True), kept)


def test_package_imports_and_answers_without_triton():
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "import virnucpro.model.kernels as k\n"
        "assert k.available() == (False, 'triton is not installed'), k.available()\n"
        "assert k.Kernels().layer_norm is k.reference.layer_norm\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_rows_in_float8_are_within_a_sixteenth_of_each_value():
    x = (
        torch.randn(50, 300, generator=torch.Generator().manual_seed(0))
        * torch.logspace(-6, 6, 50)[:, None]
    )
    x[7] = 0
    values, scales = reference.float8_rows(x)
    assert (values.dtype, scales.shape) == (torch.float8_e4m3fn, (50, 1))
    back = values.float() * scales
    assert torch.equal(back[7], x[7])
    # 3 bits of mantissa; values below 2**-6 of the largest power are on a fixed grid of 2**-9.
    smallest = scales * 2.0**-10
    assert ((back - x).abs() <= (x.abs() / 16).maximum(smallest)).all()


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_row_that_is_not_finite_stays_so_in_float8_and_spoils_no_other(poison):
    x = torch.ones(3, 16)
    x[1, 5] = poison
    weight = reference.float8_rows(torch.ones(4, 16))
    product = reference.float8_product(reference.float8_rows(x), weight)
    assert not product[1].isfinite().any()
    assert torch.equal(product[[0, 2]], torch.full((2, 4), 16.0).bfloat16())


def test_float8_product_is_near_the_exact_one():
    generator = torch.Generator().manual_seed(1)
    x, weight = (torch.randn(n, 64, generator=generator) for n in (5, 8))
    product = reference.float8_product(reference.float8_rows(x), reference.float8_rows(weight))
    exact = x @ weight.t()
    assert product.dtype == torch.bfloat16
    assert ((product - exact).norm() / exact.norm()) < 0.06
