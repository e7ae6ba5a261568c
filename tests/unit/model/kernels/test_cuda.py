"""The Triton kernels on the device, against float64 and against their references.

Without a GPU the same tests run, slowly and on short sequences, in Triton's interpreter:
``TRITON_INTERPRET=1 pytest -m gpu tests/unit/model/kernels``.
"""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from virnucpro.model.kernels import QUERY_BLOCK, attention_tiles, reference, tile_capacity

pytest.importorskip("triton")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not INTERPRETED and not torch.cuda.is_available(), reason="no CUDA device"),
]

HEADS = (
    {16: 20, 24: 20, 32: 20, 64: 20, 128: 5}
    if not INTERPRETED
    else dict.fromkeys([16, 24, 32, 64, 128], 3)
)
LONGEST = 1024 if not INTERPRETED else 130
# ||out - exact|| / ||exact||: half a unit in the last place of each rounding (q, k, weights, out).
BOUND = {torch.float16: 1e-3, torch.bfloat16: 8e-3}
# The interpreter computes bfloat16 wrongly.
DTYPES = list(BOUND) if not INTERPRETED else [torch.float16]


def rotary_tables(head_dim):
    frequency = 10000.0 ** (-torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    angle = torch.outer(torch.arange(LONGEST, dtype=torch.float32), frequency)
    return angle.cos().to(DEVICE), angle.sin().to(DEVICE)


def random_batch(lengths, head_dim, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    qkv = torch.randn(sum(lengths), 3, HEADS[head_dim], head_dim, generator=generator)
    return qkv.to(dtype).to(DEVICE)


def tiles_of(lengths, spare=5):
    cu = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    capacity = tile_capacity(int(cu[-1]), len(lengths), QUERY_BLOCK) + spare
    return torch.from_numpy(attention_tiles(cu, QUERY_BLOCK, capacity)).to(DEVICE)


def attend(qkv, lengths, tables):
    from virnucpro.model.kernels.attention import packed_attention

    poisoned = torch.full((len(qkv), qkv[0, 0].numel()), float("nan")).to(qkv)
    return packed_attention(qkv, *tables, tiles_of(lengths), out=poisoned)


def exact_attention(qkv, cos, sin):
    """One sequence in float64 by torch's own attention; qkv [n, 3, H, D]."""
    n, _, _, D = qkv.shape
    cos, sin = (torch.cat((t[:n], t[:n]), 1).double().unsqueeze(1) for t in (cos, sin))
    q, k, v = qkv.double().unbind(1)
    q, k = (x * cos + torch.cat((-x[..., D // 2 :], x[..., : D // 2]), -1) * sin for x in (q, k))
    q, k, v = (x.transpose(0, 1) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(0, 1).reshape(n, -1)


def relative_error(got, exact):
    return float((got.double() - exact).norm() / exact.norm())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("head_dim", HEADS)
def test_attention_agrees_with_float64_for_every_length(head_dim, dtype):
    rng = np.random.default_rng(head_dim)
    lengths = [LONGEST, 3, 63, 64, 65, 1, 2, 127, 128, 129, *rng.integers(3, LONGEST, 6).tolist()]
    tables, qkv = rotary_tables(head_dim), random_batch(lengths, head_dim, dtype, seed=1)
    out = attend(qkv, lengths, tables)
    assert out.isfinite().all()
    for part, rows in zip(qkv.split(lengths), out.split(lengths), strict=True):
        error = relative_error(rows, exact_attention(part, *tables))
        assert error < BOUND[dtype], (len(part), error)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("head_dim", HEADS)
def test_bits_of_a_sequence_do_not_depend_on_neighbours_or_place(head_dim, dtype):
    tables = rotary_tables(head_dim)
    for length in (3, 64, 100, LONGEST):
        mine = random_batch([length], head_dim, dtype, seed=length)
        alone = attend(mine, [length], tables)
        before, after = (random_batch([n], head_dim, dtype, seed=n) for n in (77, 130))
        packed = attend(torch.cat((before, mine, after)), [77, length, 130], tables)
        assert torch.equal(packed[77 : 77 + length], alone)


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
@pytest.mark.parametrize("head_dim", HEADS)
def test_no_value_of_a_neighbour_leaks_even_when_it_is_not_finite(head_dim, poison):
    tables = rotary_tables(head_dim)
    lengths = [5, 70, 3, 64, 61]
    qkv = random_batch(lengths, head_dim, torch.float16, seed=2)
    expected = attend(qkv, lengths, tables).split(lengths)
    for i, part in enumerate(qkv.split(lengths)):
        if i % 2 == 0:
            part.fill_(poison)
    got = attend(qkv, lengths, tables).split(lengths)
    for i in (1, 3):
        assert torch.equal(got[i], expected[i])


def test_attention_of_far_apart_scores_stays_finite_and_right():
    tables = rotary_tables(64)
    qkv = random_batch([120], 64, torch.float16, seed=3)
    qkv[:, :2] *= 12  # scores of several hundred: exp overflows without the running maximum
    out = attend(qkv, [120], tables)
    # The rounding of the rotated q and k is scaled up with the scores.
    assert relative_error(out, exact_attention(qkv, *tables)) < 0.1
    plain = reference.packed_attention(qkv, *tables, tiles_of([120]))
    assert relative_error(out, plain.double()) < 1e-2


@pytest.mark.skipif(INTERPRETED, reason="CUDA graphs need a device")
def test_captured_attention_follows_a_new_tile_list():
    from virnucpro.model.kernels.attention import packed_attention

    tables = rotary_tables(64)
    first, second = [500, 300, 224], [3] * 8 + [1000]
    qkv = random_batch(first, 64, torch.float16, seed=4)
    wide = [torch.zeros(3, 64, dtype=torch.int32, device=DEVICE) for _ in range(2)]
    for target, lengths in zip(wide, (first, second), strict=True):
        tiles = tiles_of(lengths, spare=0)
        target[:, : tiles.shape[1]] = tiles
    tiles, out = wide[0].clone(), torch.empty(1024, 20 * 64, dtype=torch.float16, device=DEVICE)
    packed_attention(qkv, *tables, tiles, out=out)  # compiles before the capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        packed_attention(qkv, *tables, tiles, out=out)
    for replayed, lengths in zip(wide, (first, second), strict=True):
        tiles.copy_(replayed)
        graph.replay()
        assert torch.equal(out, attend(qkv, lengths, tables))


def test_attention_refuses_what_it_would_misread():
    tables, tiles = rotary_tables(64), tiles_of([8])
    from virnucpro.model.kernels.attention import packed_attention

    good = random_batch([8], 64, torch.float16, seed=5)
    for qkv, message in (
        (good.float(), "float16 or bfloat16"),
        (good[..., :40].contiguous(), "with D of"),
        (good.transpose(0, 2), "must be"),
    ):
        with pytest.raises(ValueError, match=message):
            packed_attention(qkv, *tables, tiles)
    with pytest.raises(ValueError, match="float32"):
        packed_attention(good, *(t.half() for t in tables), tiles)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dim", [320, 480, 640, 1280, 2560, 5120])
def test_norms_agree_with_float64(dim, dtype):
    from virnucpro.model.kernels import elementwise

    torch.manual_seed(dim)
    x = (torch.randn(37, dim) * 3 + 1).to(dtype).to(DEVICE)
    weight, bias = (torch.randn(dim).to(dtype).to(DEVICE) for _ in range(2))
    shift = torch.randn(dim).to(DEVICE)
    for given, rows in ((None, x.double()), (shift, x.double() + shift.double())):
        normed = elementwise.layer_norm(x, weight, bias, 1e-5, deferred_bias=given)
        exact = F.layer_norm(rows, (dim,), weight.double(), bias.double(), 1e-5)
        assert relative_error(normed, exact) < BOUND[dtype] / 2


def test_norm_of_a_row_does_not_depend_on_the_other_rows():
    from virnucpro.model.kernels import elementwise

    x = torch.randn(41, 320).half().to(DEVICE)
    weight, bias = torch.randn(2, 320).half().to(DEVICE)
    expected = elementwise.layer_norm(x, weight, bias, 1e-5)[20]
    other = torch.full_like(x, float("nan"))
    other[3] = x[20]
    assert torch.equal(elementwise.layer_norm(other, weight, bias, 1e-5)[3], expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 1280), (33, 1920), (5, 5120)])
def test_gelu_is_the_erf_form_to_the_last_place(shape, dtype):
    from virnucpro.model.kernels import elementwise

    torch.manual_seed(0)
    x = torch.randn(shape).mul(2).to(dtype).to(DEVICE)
    bias = torch.randn(shape[1]).to(dtype).to(DEVICE)
    exact = F.gelu(x.double() + bias.double())
    for got in (
        elementwise.bias_gelu(x, bias),
        elementwise.bias_gelu(x.clone(), bias, inplace=True),
        elementwise.bias_gelu((x.float() + bias.float()).to(dtype).clone(), None),
    ):
        assert relative_error(got, exact) < BOUND[dtype] / 2


def test_gelu_keeps_its_relative_accuracy_where_erf_cancels():
    from virnucpro.model.kernels import elementwise

    x = torch.linspace(-5.5, 6, 4001).reshape(1, -1).to(DEVICE)
    exact = 0.5 * x.double() * torch.erfc(-x.double() / 2**0.5)
    got = elementwise.bias_gelu(x).double()
    assert ((got - exact).abs() <= 3e-6 * exact.abs()).all()


def test_gelu_of_extreme_values_is_zero_or_the_value():
    from virnucpro.model.kernels import elementwise

    x = torch.tensor([[-60000.0, -20.0, 0.0, 20.0, 60000.0]]).half().to(DEVICE)
    assert elementwise.bias_gelu(x).tolist() == [[0.0, 0.0, 0.0, 20.0, 60000.0 // 32 * 32]]


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float32], ids=str)
@pytest.mark.parametrize("dim", [320, 480, 1280])
def test_pooling_averages_residues_only(dim, dtype):
    from virnucpro.model.kernels import elementwise

    lengths = [3, LONGEST, 65, 2, 34, 0, 7]
    cu = torch.tensor(np.cumsum([0, *lengths]), dtype=torch.int32, device=DEVICE)
    hidden = torch.randn(sum(lengths), dim).to(dtype).to(DEVICE)
    for at in cu.tolist()[:-1]:
        hidden[min(at, len(hidden) - 1)] = float("nan")  # BOS; must not be read
    first = torch.minimum(cu[:-1] + 1, cu[1:])
    ranges = torch.stack((first, torch.maximum(cu[1:] - 1, first)), dim=1)
    out = torch.full((len(lengths), dim), float("inf"), device=DEVICE)
    pooled = elementwise.pool_mean(hidden, ranges, out)
    assert pooled is out
    exact = reference.pool_mean(hidden.double(), ranges)
    assert pooled[[3, 5]].isnan().all()
    kept = [0, 1, 2, 4, 6]
    torch.testing.assert_close(pooled[kept], exact[kept].float(), rtol=1e-5, atol=1e-6)


def test_pooled_bits_do_not_depend_on_neighbours_or_place():
    from virnucpro.model.kernels import elementwise

    mine = torch.randn(LONGEST, 480).half().to(DEVICE)
    whole = torch.tensor([[1, LONGEST - 1]], dtype=torch.int32, device=DEVICE)
    other = torch.full((13, 480), float("nan")).half().to(DEVICE)
    moved = torch.cat((other, mine, other))
    shifted = torch.cat((torch.tensor([[1, 12]], device=DEVICE), whole + 13)).int()
    alone = elementwise.pool_mean(mine, whole)[0]
    assert torch.equal(elementwise.pool_mean(moved, shifted)[1], alone)


def test_one_column_is_pooled_as_many_are():
    from virnucpro.model.kernels import elementwise

    values = torch.randn(500, 1, device=DEVICE)
    ranges = torch.tensor([[1, 300], [302, 499]], dtype=torch.int32, device=DEVICE)
    torch.testing.assert_close(
        elementwise.pool_mean(values, ranges), reference.pool_mean(values, ranges)
    )


# Whose code runs: that of the device, or of an older card (see `older`).
COMPILED_FOR = int(os.environ.get("COMPILE_FOR", "0")) or (
    10 * torch.cuda.get_device_capability()[0] + torch.cuda.get_device_capability()[1]
    if torch.cuda.is_available()
    else 0
)
FLOAT8 = pytest.mark.skipif(
    INTERPRETED or COMPILED_FOR < 89, reason="float8 needs a device of compute capability 8.9"
)
# Of the bytes. A value between two float8 numbers may go either way when its last bits differ; on
# 8.9 more do, as the conversion there rounds twice, to float16 and then to float8.
SAME_FLOAT8 = 0.995 if COMPILED_FOR == 89 else 0.999


@FLOAT8
@pytest.mark.parametrize("dim", [320, 1280, 2560, 5120])
def test_layer_norm_in_float8_agrees_with_its_reference(dim):
    from virnucpro.model.kernels import elementwise

    generator = torch.Generator(DEVICE).manual_seed(dim)
    x = torch.randn(130, dim, device=DEVICE, generator=generator).bfloat16() * 3
    weight, bias, shift = torch.randn(3, dim, device=DEVICE, generator=generator).bfloat16()
    given = (x, weight, bias, 1e-5, shift)
    values, scales = elementwise.layer_norm_float8(*given)
    plain, plain_scales = reference.layer_norm_float8(*given)
    torch.testing.assert_close(scales, plain_scales, rtol=1e-5, atol=0)
    assert (values.view(torch.uint8) == plain.view(torch.uint8)).float().mean() > SAME_FLOAT8


@FLOAT8
@pytest.mark.parametrize("width", [1280, 5120, 10240, 20480])
def test_gelu_in_float8_agrees_with_its_reference(width):
    from virnucpro.model.kernels import elementwise

    generator = torch.Generator(DEVICE).manual_seed(width)
    x = torch.randn(70, width, device=DEVICE, generator=generator).bfloat16() * 2
    bias = torch.randn(width, device=DEVICE, generator=generator).bfloat16()
    x[3] = -100  # nothing is left of it
    bias[:] = bias.clamp(max=5)
    values, scales = elementwise.bias_gelu_float8(x, bias)
    plain, plain_scales = reference.bias_gelu_float8(x, bias)
    torch.testing.assert_close(scales, plain_scales, rtol=1e-5, atol=0)
    assert (values.view(torch.uint8) == plain.view(torch.uint8)).float().mean() > SAME_FLOAT8


@FLOAT8
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_float8_rows_that_are_not_finite_stay_so(poison):
    from virnucpro.model.kernels import elementwise

    x = torch.ones(4, 1280, device=DEVICE).bfloat16()
    x[2, 9] = poison
    weight = torch.ones(1280, device=DEVICE).bfloat16()
    for _, scales in (
        elementwise.layer_norm_float8(x, weight, weight, 1e-5),
        elementwise.bias_gelu_float8(x, weight),
    ):
        assert scales.isfinite().flatten().tolist() == [True, True, False, True]


@FLOAT8
def test_float8_product_agrees_with_its_reference_and_ignores_other_rows():
    from virnucpro.model.kernels.float8 import float8_product

    generator = torch.Generator(DEVICE).manual_seed(0)
    x, weight = (torch.randn(n, 1280, device=DEVICE, generator=generator) for n in (256, 640))
    rows, scaled = reference.float8_rows(x), reference.float8_rows(weight)
    got = float8_product(rows, scaled)
    assert relative_error(got, reference.float8_product(rows, scaled).double()) < 5e-3
    others = torch.cat((x[:100], torch.randn(156, 1280, device=DEVICE, generator=generator)))
    again = float8_product(reference.float8_rows(others), scaled)
    assert torch.equal(again[:100], got[:100])
