import pytest
from esm.model.esm2 import ESM2

from virnucpro.model.config import (
    KNOWN_MODELS,
    ModelConfig,
    expected_tensors,
    list_names,
    lm_head_tensors,
    rotary_tensors,
    shape_problems,
)

TINY = ModelConfig("tiny", 2, 32, 4)


def test_expected_tensors_are_those_of_fair_esm_in_names_and_shapes():
    state = ESM2(num_layers=2, embed_dim=32, attention_heads=4).state_dict()
    left_out = ("contact_head.", "lm_head.weight")
    theirs = {
        name: tuple(tensor.shape)
        for name, tensor in state.items()
        if not name.startswith(left_out) and not name.endswith("inv_freq")
    }
    assert expected_tensors(TINY) | lm_head_tensors(TINY) == theirs


def test_rotary_table_has_the_shape_of_fair_esm_s_buffer():
    state = ESM2(num_layers=1, embed_dim=32, attention_heads=4).state_dict()
    theirs = tuple(state["layers.0.self_attn.rot_emb.inv_freq"].shape)
    assert list(rotary_tensors(TINY).values()) == [theirs]


def test_parameters_count_what_fair_esm_counts():
    model = ESM2(num_layers=2, embed_dim=32, attention_heads=4)
    theirs = sum(p.numel() for n, p in model.named_parameters() if "contact" not in n)
    assert TINY.parameters(lm_head=True) == theirs


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("esm2_t6_8M_UR50D", 7.5),
        ("esm2_t12_35M_UR50D", 33.5),
        ("esm2_t30_150M_UR50D", 148),
        ("esm2_t33_650M_UR50D", 651),
        ("esm2_t36_3B_UR50D", 2839),
        ("esm2_t48_15B_UR50D", 15_134),
    ],
)
def test_known_models_have_the_size_that_their_names_say(name, millions):
    config = KNOWN_MODELS[name]
    assert config.parameters(lm_head=True) / 1e6 == pytest.approx(millions, rel=0.01)
    assert name.startswith(f"esm2_t{config.layers}_")


def test_demo_has_the_shape_of_the_smallest_esm2():
    demo, small = KNOWN_MODELS["demo"], KNOWN_MODELS["esm2_t6_8M_UR50D"]
    assert (demo.layers, demo.dim, demo.heads) == (small.layers, small.dim, small.heads)


@pytest.mark.parametrize("numbers", [(0, 32, 4), (2, 0, 4), (2, 32, 0), (2, 30, 4), (2, 12, 4)])
def test_impossible_shapes_are_refused(numbers):
    with pytest.raises(ValueError, match="broken"):
        ModelConfig("broken", *numbers)


def test_right_tensors_make_no_problem_with_and_without_head_and_frequencies():
    required = expected_tensors(TINY)
    assert shape_problems(TINY, required) == []
    assert shape_problems(TINY, required | lm_head_tensors(TINY) | rotary_tensors(TINY)) == []


@pytest.mark.parametrize("name", list(expected_tensors(TINY)))
def test_every_single_missing_tensor_is_named(name):
    shapes = expected_tensors(TINY)
    del shapes[name]
    assert shape_problems(TINY, shapes) == [f"missing tensors: {name}"]


@pytest.mark.parametrize("name", list(lm_head_tensors(TINY)))
def test_half_a_language_model_head_is_a_problem(name):
    shapes = expected_tensors(TINY) | lm_head_tensors(TINY)
    del shapes[name]
    assert shape_problems(TINY, shapes) == [f"missing tensors: {name}"]


def test_extra_and_misshapen_tensors_are_named():
    shapes = expected_tensors(TINY) | {"layers.2.fc1.bias": (128,), "embed_tokens.weight": (34, 32)}
    assert shape_problems(TINY, shapes) == [
        "unexpected tensors: layers.2.fc1.bias",
        "wrong shapes: embed_tokens.weight is [34, 32], not [33, 32]",
    ]


def test_long_lists_of_names_are_cut():
    assert list_names("abcdef", most=4) == "a, b, c, d and 2 more"
    assert list_names("abcd", most=4) == "a, b, c, d"
