"""The packed model against its two oracles: fair-esm's ESM2 and transformers' Esm, in float32.

Weights are random and perturbed (no published file is needed), and go the way that real ones go:
file, conversion, `load_weights`, `PackedESM2`. Run with ``-s`` to see the largest differences.
"""

import functools
import random
from pathlib import Path

import pytest
import torch
from esm.data import Alphabet

from virnucpro.errors import InputError
from virnucpro.model.canonical import canonical_state
from virnucpro.model.config import KNOWN_MODELS, ROTARY_FREQUENCIES
from virnucpro.model.kernels import Kernels
from virnucpro.model.loading import build_model
from virnucpro.model.weights import fetch_model, load_weights

TOLERANCE = 2e-5
ALPHABET = Alphabet.from_architecture("ESM-1b")
CLS, PAD, EOS = 0, 1, 2
COMMON, RARE = "LAGVSERTIDPKQNFYMHWC", "XBUZO"

# model, batches of lengths in residues: the longest that a plan allows, the shortest, and between
CASES = {
    "esm2_t6_8M_UR50D": [(1, 2, 3, 30, 7, 64, 65), (1022, 255), (600,), (1021,)],
    "esm2_t12_35M_UR50D": [(1, 17, 128), (1022,)],
    "esm2_t30_150M_UR50D": [(1, 40), (130,)],
}


def make_sequences(lengths, seed=0):
    """Random proteins in which every letter of ESM-2's alphabet occurs, rare ones included."""
    rng = random.Random(seed)
    letters = COMMON * 3 + RARE
    sequences = ["".join(rng.choices(letters, k=length)) for length in lengths]
    longest = max(range(len(sequences)), key=lambda i: len(sequences[i]))
    sequences[longest] = RARE + COMMON + sequences[longest][len(RARE + COMMON) :]
    return sequences


def tokenise(sequence):
    return [CLS, *(ALPHABET.tok_to_idx[letter] for letter in sequence), EOS]


def pack(sequences):
    """Tokens, positions, cu_seqlens and max_seqlen of sequences placed end to end."""
    rows = [torch.tensor(tokenise(sequence)) for sequence in sequences]
    lengths = torch.tensor([0, *map(len, rows)])
    positions = torch.cat([torch.arange(len(row), dtype=torch.int32) for row in rows])
    cu_seqlens = lengths.cumsum(0).to(torch.int32)
    return torch.cat(rows), positions, cu_seqlens, int(lengths.max())


def pad(sequences):
    """Tokens [B, L], padded on the right as fair-esm's batch converter does."""
    rows = [torch.tensor(tokenise(sequence)) for sequence in sequences]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAD)


def run_packed(model, sequences, layers):
    """{layer: [one [length + 2, dim] a sequence]}."""
    tokens, positions, cu_seqlens, max_seqlen = pack(sequences)
    out = model(tokens, positions, cu_seqlens, max_seqlen, layers)
    lengths = cu_seqlens.diff().tolist()
    return {layer: out[layer].split(lengths) for layer in layers}


def run_fair_esm(model, batches, layers):
    """As `run_packed`, from batches of sequences padded to their longest."""
    found = {layer: [] for layer in layers}
    for batch in batches:
        result = model(pad(batch), repr_layers=layers)["representations"]
        for layer in layers:
            found[layer] += [result[layer][i, : len(s) + 2] for i, s in enumerate(batch)]
    return found


def run_huggingface(model, batches, layers):
    """As `run_packed`; the last of transformers' hidden states has the final LayerNorm."""
    found = {layer: [] for layer in layers}
    base = getattr(model, "esm", model)
    for batch in batches:
        tokens = pad(batch)
        states = base(
            input_ids=tokens, attention_mask=(tokens != PAD).long(), output_hidden_states=True
        ).hidden_states
        for layer in layers:
            found[layer] += [states[layer][i, : len(s) + 2] for i, s in enumerate(batch)]
    return found


def largest_difference(found, expected):
    """Largest absolute difference of each layer."""
    assert found.keys() == expected.keys()
    return {
        layer: max(
            (a - b).abs().max().item() for a, b in zip(found[layer], expected[layer], strict=True)
        )
        for layer in expected
    }


@pytest.fixture
def agree(record_property, request):
    """Assert that two runs agree, and record how well."""

    def check(found, expected):
        difference = largest_difference(found, expected)
        print(f"\n{request.node.name}: largest difference by layer {difference}")
        record_property("largest_difference", max(difference.values()))
        assert max(difference.values()) < TOLERANCE, difference

    return check


def through_files(folder, source):
    """Convert, load and build the packed model of a source of weights."""
    files = folder / "model.safetensors", folder / "model.json"
    fetch_model(str(source), *files)
    config, state = load_weights(*files)
    return build_model(config, state)


@pytest.fixture(scope="module")
def fair_esm(build, tmp_path_factory):
    """Give (fair-esm's model, the packed model of its weights) of a shape; made once each."""

    @functools.cache
    def make(name):
        config = KNOWN_MODELS[name]
        model = build.round_frequencies(build.esm2(config.layers, config.dim, config.heads))
        path = tmp_path_factory.mktemp("parity") / f"{name}.pt"
        if config.layers > 12:  # hundreds of megabytes: not through the disk
            state = canonical_state(config, model.state_dict(), path)
            return model, build_model(config, state)
        torch.save(build.published(model), path)
        return model, through_files(path.parent, path)

    return make


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.inference_mode():
        yield


def lengths_of(name):
    return [length for lengths in CASES[name] for length in lengths]


def layers_to_compare(name):
    last = KNOWN_MODELS[name].layers
    return [0, 1, last // 2, last - 1, last]


@pytest.mark.parametrize("name", CASES)
def test_packed_is_fair_esm_on_each_sequence_alone(fair_esm, agree, name):
    theirs, packed = fair_esm(name)
    sequences, layers = make_sequences(lengths_of(name)), layers_to_compare(name)
    expected = run_fair_esm(theirs, [[sequence] for sequence in sequences], layers)
    agree(run_packed(packed, sequences, layers), expected)


@pytest.mark.parametrize("name", ["esm2_t6_8M_UR50D", "esm2_t12_35M_UR50D"])
def test_attention_in_padded_calls_is_fair_esm_on_each_sequence_alone(fair_esm, agree, name):
    theirs, _ = fair_esm(name)
    state = canonical_state(KNOWN_MODELS[name], theirs.state_dict(), Path("memory"))
    packed = build_model(KNOWN_MODELS[name], state, attention="padded")
    sequences, layers = make_sequences((1, 2, 3, 30, 31, 64, 255, 257)), layers_to_compare(name)
    expected = run_fair_esm(theirs, [[sequence] for sequence in sequences], layers)
    agree(run_packed(packed, sequences, layers), expected)


@pytest.mark.parametrize("name", CASES)
def test_packed_is_fair_esm_on_padded_batches(fair_esm, agree, name):
    theirs, packed = fair_esm(name)
    layers = layers_to_compare(name)
    batches = [make_sequences(lengths, seed=1) for lengths in CASES[name] if len(lengths) > 1]
    expected = run_fair_esm(theirs, batches, layers)
    agree(run_packed(packed, [s for batch in batches for s in batch], layers), expected)


@pytest.mark.parametrize("sequence", ["M", *RARE, "X" * 50, RARE * 10, "MOXIUZB"])
def test_packed_is_fair_esm_on_rare_letters(fair_esm, agree, sequence):
    theirs, packed = fair_esm("esm2_t6_8M_UR50D")
    neighbours = make_sequences([9, 120])
    packed_with_others = [neighbours[0], sequence, neighbours[1]]
    found = run_packed(packed, packed_with_others, [0, 3, 6])
    expected = run_fair_esm(theirs, [[sequence]], [0, 3, 6])
    agree({layer: [rows[1]] for layer, rows in found.items()}, expected)


def test_no_sequence_sees_its_neighbours(fair_esm, agree):
    _, packed = fair_esm("esm2_t6_8M_UR50D")
    sequences = make_sequences([200, 50, 3])
    others = make_sequences([31, 400, 1], seed=7)
    alone = run_packed(packed, [sequences[1]], [3, 6])
    for before, after in ((sequences[0], sequences[2]), (others[0], others[1]), ("", others[2])):
        found = run_packed(packed, [before, sequences[1], after], [3, 6])
        agree({layer: [rows[1]] for layer, rows in found.items()}, alone)


def test_frequencies_of_the_file_are_used_and_not_computed_anew(build, fair_esm, agree, tmp_path):
    """The published files hold them rounded to float16; exact ones give other embeddings."""
    theirs, packed = fair_esm("esm2_t6_8M_UR50D")
    exact = build.esm2(6, 320, 20)
    path = tmp_path / "esm2_exact.pt"
    torch.save(build.published(exact), path)
    packed_exact = through_files(tmp_path, path)
    sequences = make_sequences([1022])
    batches = [[sequence] for sequence in sequences]
    agree(run_packed(packed_exact, sequences, [6]), run_fair_esm(exact, batches, [6]))
    rounded = run_fair_esm(theirs, batches, [6])
    agree(run_packed(packed, sequences, [6]), rounded)
    mixed = largest_difference(run_packed(packed_exact, sequences, [6]), rounded)
    print(f"\nexact frequencies in place of the file's: difference {mixed[6]}")
    assert mixed[6] > 10 * TOLERANCE


def test_weights_without_frequencies_get_those_of_fair_esm_s_initialisation(build, agree):
    config = KNOWN_MODELS["esm2_t6_8M_UR50D"]
    theirs = build.esm2(config.layers, config.dim, config.heads)
    state = canonical_state(config, theirs.state_dict(), Path("memory"))
    del state[ROTARY_FREQUENCIES]
    packed = build_model(config, state)
    sequences = make_sequences([700, 5])
    batches = [[sequence] for sequence in sequences]
    agree(run_packed(packed, sequences, [3, 6]), run_fair_esm(theirs, batches, [3, 6]))


def test_mean_over_residues_is_that_of_fair_esm_s_extract_script(fair_esm):
    theirs, packed = fair_esm("esm2_t6_8M_UR50D")
    sequences = make_sequences([1, 2, 90, 333])
    tokens, positions, cu_seqlens, max_seqlen = pack(sequences)
    last = theirs.num_layers
    hidden = packed(tokens, positions, cu_seqlens, max_seqlen, [last])[last]
    ranges = torch.stack((cu_seqlens[:-1] + 1, cu_seqlens[1:] - 1), dim=1)
    found = Kernels().pool_mean(hidden, ranges)
    representation = theirs(pad(sequences), repr_layers=[last])["representations"][last]
    # scripts/extract.py: t[i, 1 : truncate_len + 1].mean(0)
    expected = [representation[i, 1 : len(s) + 1].mean(0) for i, s in enumerate(sequences)]
    difference = (found - torch.stack(expected)).abs().max().item()
    print(f"\nlargest difference of means {difference}")
    assert found.dtype is torch.float32
    assert difference < TOLERANCE


def test_likelihood_is_that_of_fair_esm_s_logits(fair_esm):
    theirs, _ = fair_esm("esm2_t6_8M_UR50D")
    config = KNOWN_MODELS["esm2_t6_8M_UR50D"]
    state = canonical_state(config, theirs.state_dict(), Path("memory"))
    packed = build_model(config, state, head=True)
    sequences = make_sequences([1, 90, 333])
    tokens, positions, cu_seqlens, max_seqlen = pack(sequences)
    hidden = packed(tokens, positions, cu_seqlens, max_seqlen, [-1])[config.layers]
    found = packed.log_likelihood(hidden, tokens)
    assert found.dtype is torch.float32
    for (first, end), sequence in zip(
        zip(cu_seqlens[:-1].tolist(), cu_seqlens[1:].tolist(), strict=True), sequences, strict=True
    ):
        shown = torch.tensor([tokenise(sequence)])
        logits = theirs(shown)["logits"].log_softmax(dim=-1)
        expected = logits.gather(2, shown[..., None])[0, :, 0]
        assert (found[first:end] - expected).abs().max() < 5 * TOLERANCE


def test_the_head_is_there_only_where_it_is_asked_for(fair_esm):
    theirs, packed = fair_esm("esm2_t6_8M_UR50D")
    assert packed.lm_head is None
    config = KNOWN_MODELS["esm2_t6_8M_UR50D"]
    state = canonical_state(config, theirs.state_dict(), Path("memory"))
    headless = {name: tensor for name, tensor in state.items() if not name.startswith("lm_head")}
    with pytest.raises(InputError, match="no language-model head"):
        build_model(config, headless, head=True)


@pytest.mark.parametrize(("cls_name", "rounded"), [("EsmForMaskedLM", True), ("EsmModel", False)])
def test_packed_is_transformers_esm(build, agree, tmp_path, cls_name, rounded):
    theirs = build.huggingface(
        cls_name, hidden_size=320, num_hidden_layers=6, num_attention_heads=20
    )
    if rounded:
        table = getattr(theirs, "esm", theirs).rotary_embeddings.inv_freq
        table.copy_(table.half().float())
    theirs.save_pretrained(tmp_path / "esm2_hf")
    packed = through_files(tmp_path, tmp_path / "esm2_hf")
    sequences, layers = make_sequences([1, 1022, 3, 77]), [0, 1, 3, 5, 6]
    found = run_packed(packed, sequences, layers)
    agree(found, run_huggingface(theirs, [[sequence] for sequence in sequences], layers))
    agree(found, run_huggingface(theirs, [sequences[:1], sequences[1:2], sequences[2:]], layers))
