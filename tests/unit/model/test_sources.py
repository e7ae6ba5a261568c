import argparse
import json
import os
import pickle
import re
import shutil
import urllib.error
import zipfile
from pathlib import Path

import esm
import pytest
import torch
from safetensors.torch import load_file, save_file

from virnucpro.errors import DataError, InputError
from virnucpro.model import named
from virnucpro.model.config import KNOWN_MODELS, ROTARY_FREQUENCIES
from virnucpro.model.huggingface import HuggingFaceSource
from virnucpro.model.named import ADDRESS
from virnucpro.model.published import read_published
from virnucpro.model.sources import find_source

ENCODER = "encoder.sentence_encoder."


def assert_same_tensors(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


def canonical_of(model):
    """What a canonical state dict of fair-esm's model must be, written out independently."""
    state = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if "contact" not in name and "inv_freq" not in name and name != "lm_head.weight"
    }
    state[ROTARY_FREQUENCIES] = model.layers[0].self_attn.rot_emb.inv_freq
    return state


# The published file


def test_the_builder_writes_what_fair_esm_itself_reads(build, publish):
    model = build.esm2()
    path = publish(model)
    regression = {name: tensor for name, tensor in model.state_dict().items() if "contact" in name}
    torch.save({"model": regression}, path.with_name(f"{path.stem}-contact-regression.pt"))
    with torch.serialization.safe_globals([argparse.Namespace]):
        theirs, _ = esm.pretrained.load_model_and_alphabet_local(path)
    assert_same_tensors(theirs.state_dict(), model.state_dict())


def test_published_file_gives_fair_esm_s_tensors(build, publish):
    model = build.esm2()
    config, state = read_published(publish(model), "esm2_tiny")
    assert (config.name, config.layers, config.dim, config.heads) == ("esm2_tiny", 2, 32, 4)
    assert_same_tensors(state, canonical_of(model))
    assert all(tensor.is_contiguous() for tensor in state.values())


def test_contact_regression_is_left_out_where_a_file_has_it(build, publish):
    model = build.esm2()

    def edit(content):
        content["model"] |= {
            f"encoder.{name}": t for name, t in model.state_dict().items() if "contact" in name
        }

    _, state = read_published(publish(model, edit=edit), "esm2_tiny")
    assert_same_tensors(state, canonical_of(model))


def test_names_with_the_short_prefix_are_read(build, publish):
    model = build.esm2()

    def edit(content):
        content["model"] = {
            name.replace(ENCODER, "encoder."): t for name, t in content["model"].items()
        }

    _, state = read_published(publish(model, edit=edit), "esm2_tiny")
    assert_same_tensors(state, canonical_of(model))


def test_rotary_frequencies_stay_as_they_were_trained(build, publish):
    model = build.esm2(heads=2)
    exact = model.layers[0].self_attn.rot_emb.inv_freq.clone()
    build.round_frequencies(model)
    _, state = read_published(publish(model), "esm2_tiny")
    assert torch.equal(state[ROTARY_FREQUENCIES], exact.half().float())
    assert not torch.equal(state[ROTARY_FREQUENCIES], exact)


def test_half_precision_files_stay_half_precision_and_frequencies_float32(build, publish):
    model = build.esm2().half()
    _, state = read_published(publish(model), "esm2_tiny")
    dtypes = {name: tensor.dtype for name, tensor in state.items()}
    assert dtypes.pop(ROTARY_FREQUENCIES) is torch.float32
    assert set(dtypes.values()) == {torch.float16}


def test_legacy_serialisation_is_read(build, tmp_path):
    model = build.esm2()
    path = tmp_path / "esm2_old.pt"
    torch.save(build.published(model), path, _use_new_zipfile_serialization=False)
    _, state = read_published(path, "esm2_old")
    assert_same_tensors(state, canonical_of(model))


class Payload:
    """Unpickling this makes the file, if anything lets it."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.fault(36)
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("where", ["cfg", "model", "beside"])
def test_malicious_pickle_runs_nothing(build, tmp_path, monkeypatch, zipped, where):
    # the variable makes torch.load unsafe wherever a caller leaves weights_only to its default
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    target = tmp_path / "executed"
    content = build.published(build.esm2())
    payload = Payload(os.system, f"touch {target}")
    if where == "cfg":
        content["cfg"]["model"].encoder_layers = payload
    elif where == "model":
        content["model"]["encoder.extra"] = payload
    else:
        content["beside"] = payload
    path = tmp_path / "esm2_evil.pt"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match=r"posix\.system") as caught:
        read_published(path, "esm2_evil")
    assert str(path) in str(caught.value)
    assert not target.exists()


@pytest.mark.fault(36)
@pytest.mark.parametrize(
    ("function", "name"),
    [(eval, "asks for eval,"), (getattr, "asks for getattr,"), (os.fork, r"asks for posix\.fork,")],
)
def test_malicious_pickle_of_builtins_runs_nothing(tmp_path, function, name):
    path = tmp_path / "evil.pt"
    torch.save(Payload(function, "1"), path)
    with pytest.raises(InputError, match=name):
        read_published(path, "evil")


@pytest.mark.fault(36)
def test_a_bare_pickle_runs_nothing(tmp_path):
    target = tmp_path / "executed"
    path = tmp_path / "evil.pt"
    path.write_bytes(pickle.dumps(Payload(Path.touch, target), protocol=2))
    with pytest.raises(InputError) as caught:
        read_published(path, "evil")
    assert "can still be loaded" not in str(caught.value)
    assert not target.exists()


def test_the_allow_list_is_given_back_afterwards(build, publish):
    before = set(torch.serialization.get_safe_globals())
    read_published(publish(build.esm2()), "esm2_tiny")
    assert set(torch.serialization.get_safe_globals()) == before


@pytest.mark.fault(37)
@pytest.mark.parametrize("kept", [0, 1, 3, 4, 100, 0.3, 0.9, -1])
def test_truncated_published_file_is_refused(build, publish, kept):
    path = publish(build.esm2())
    content = path.read_bytes()
    kept = int(kept * len(content)) if 0 < kept < 1 else kept
    path.write_bytes(content[:kept])
    with pytest.raises(InputError, match=r"not a complete PyTorch file|is empty"):
        read_published(path, "esm2_tiny")


@pytest.mark.fault(37)
def test_a_flipped_bit_of_a_published_file_is_found(build, publish):
    path = publish(build.esm2())
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda info: info.file_size)
    content[largest.header_offset + largest.file_size // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"{re.escape(largest.filename)} in it is damaged"):
        read_published(path, "esm2_tiny")


def change_cfg(**values):
    return lambda content: vars(content["cfg"]["model"]).update(values)


def set_tensor(name, tensor):
    return lambda content: content["model"].__setitem__(name, tensor)


@pytest.mark.fault(37)
@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (change_cfg(token_dropout=False), "token_dropout False"),
        (change_cfg(encoder_layers=3), r"missing tensors: layers\.2\..* and 12 more"),
        (change_cfg(encoder_layers=1), r"unexpected tensors: layers\.1\.fc1"),
        (change_cfg(encoder_layers="2"), "layers '2'"),
        (change_cfg(encoder_layers=-1), "must be positive"),
        (change_cfg(encoder_attention_heads=5), "not a multiple of twice"),
        (change_cfg(encoder_attention_heads=8), "inv_freq.* not of shape"),
        (change_cfg(encoder_embed_dim=64), "wrong shapes: embed_tokens.weight is"),
        (lambda c: c.pop("cfg"), "not in the structure .*cfg"),
        (lambda c: c.update(cfg={"model": 3}), "not in the structure"),
        (lambda c: c.update(model=[1]), "not in the structure"),
        (lambda c: delattr(c["cfg"]["model"], "token_dropout"), "token_dropout"),
        (lambda c: c["model"].pop(f"{ENCODER}layers.1.fc2.bias"), r"missing.*layers\.1\.fc2\.bias"),
        (lambda c: c["model"].pop("encoder.lm_head.dense.bias"), r"missing.*lm_head\.dense\.bias"),
        (set_tensor("encoder.version", torch.ones(1)), "unexpected tensors: version"),
        (set_tensor(f"{ENCODER}embed_tokens.weight", torch.ones(34, 32)), "wrong shapes"),
        (set_tensor("encoder.lm_head.weight", torch.ones(33, 32)), "not embed_tokens.weight"),
        (set_tensor(f"{ENCODER}layers.0.fc1.bias", torch.ones(128).half()), "float16, float32"),
        (set_tensor(f"{ENCODER}layers.0.fc1.bias", "text"), r"not dense tensors: layers\.0\.fc1"),
        (
            set_tensor(f"{ENCODER}layers.1.self_attn.rot_emb.inv_freq", torch.ones(4)),
            "differ between layers",
        ),
    ],
)
def test_published_file_that_is_not_esm2_is_refused(build, publish, edit, message):
    path = publish(build.esm2(), edit=edit)
    with pytest.raises(InputError, match=message) as caught:
        read_published(path, "esm2_tiny")
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", ["esm2_t6_8M_UR50D", "demo"])
def test_a_local_file_cannot_take_the_name_of_another_model(build, publish, name):
    path = publish(build.esm2(), name)
    with pytest.raises(InputError, match=name):
        find_source(str(path)).read()


# The Hugging Face layout


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "esm2_hf"


def expected_from_huggingface(model):
    """Canonical names of a transformers model, through its modules and not through names."""
    base = getattr(model, "esm", model)
    state = {"embed_tokens.weight": base.embeddings.word_embeddings.weight}
    for i, layer in enumerate(base.encoder.layer):
        attention = layer.attention
        modules = {
            "self_attn.q_proj": attention.self.query,
            "self_attn.k_proj": attention.self.key,
            "self_attn.v_proj": attention.self.value,
            "self_attn.out_proj": attention.output.dense,
            "self_attn_layer_norm": attention.LayerNorm,
            "fc1": layer.intermediate.dense,
            "fc2": layer.output.dense,
            "final_layer_norm": layer.LayerNorm,
        }
        for name, module in modules.items():
            state |= {f"layers.{i}.{name}.{k}": v for k, v in module.state_dict().items()}
    after = base.encoder.emb_layer_norm_after.state_dict()
    state |= {f"emb_layer_norm_after.{k}": v for k, v in after.items()}
    if hasattr(model, "lm_head"):
        head = model.lm_head.state_dict()
        state |= {f"lm_head.{k}": v for k, v in head.items() if k != "decoder.weight"}
    return state | {ROTARY_FREQUENCIES: base.rotary_embeddings.inv_freq}


@pytest.mark.parametrize("cls_name", ["EsmForMaskedLM", "EsmModel"])
@pytest.mark.parametrize("shard_size", ["5GB", "20KB"])
def test_huggingface_folder_gives_transformers_tensors(build, folder, cls_name, shard_size):
    model = build.huggingface(cls_name)
    model.save_pretrained(folder, max_shard_size=shard_size)
    source = HuggingFaceSource(folder)
    assert (len(source.weight_files) > 1) == (shard_size == "20KB")
    config, state = source.read()
    assert (config.name, config.layers, config.dim, config.heads) == ("esm2_hf", 2, 32, 4)
    assert_same_tensors(state, expected_from_huggingface(model))


@pytest.mark.parametrize("sharded", [False, True])
def test_pytorch_model_bin_is_read(build, folder, sharded):
    model = build.huggingface()
    model.save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    state = model.state_dict()
    if sharded:
        names = list(state)
        halves = {"a.bin": names[:20], "b.bin": names[20:]}
        for file, keys in halves.items():
            torch.save({key: state[key] for key in keys}, folder / file)
        weight_map = {key: file for file, keys in halves.items() for key in keys}
        index = folder / "pytorch_model.bin.index.json"
        index.write_text(json.dumps({"weight_map": weight_map}))
    else:
        torch.save(state, folder / "pytorch_model.bin")
    assert_same_tensors(HuggingFaceSource(folder).read()[1], expected_from_huggingface(model))


def test_the_older_published_layout_is_read(build, folder):
    """facebook/esm2_*: LayerNorm.weight, rounded frequencies in each layer, unused tensors."""
    model = build.huggingface()
    model.save_pretrained(folder)
    frequencies = model.esm.rotary_embeddings.inv_freq.half().float()
    state = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        name = name.replace(".gamma", ".weight").replace(".beta", ".bias")
        if "inv_freq" not in name:
            state[name] = tensor
    for i in range(2):
        key = f"esm.encoder.layer.{i}.attention.self.rotary_embeddings.inv_freq"
        state[key] = frequencies.clone()
    state["esm.embeddings.position_ids"] = torch.arange(1026)[None]
    state["esm.embeddings.position_embeddings.weight"] = torch.ones(1026, 32)
    state["lm_head.decoder.weight"] = state["esm.embeddings.word_embeddings.weight"].clone()
    save_file(state, folder / "model.safetensors")
    expected = expected_from_huggingface(model) | {ROTARY_FREQUENCIES: frequencies}
    assert_same_tensors(HuggingFaceSource(folder).read()[1], expected)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model_type", "bert"),
        ("position_embedding_type", "absolute"),
        ("token_dropout", False),
        ("vocab_size", 34),
        ("emb_layer_norm_before", True),
        ("layer_norm_eps", 1e-12),
        ("rope_theta", 500000.0),
        ("pad_token_id", 0),
        ("mask_token_id", 4),
        ("is_folding_model", True),
        ("intermediate_size", 64),
        ("num_hidden_layers", "2"),
        ("hidden_size", None),
    ],
)
def test_config_that_is_not_esm2_is_refused_by_the_value_that_differs(build, folder, key, value):
    build.huggingface().save_pretrained(folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(InputError) as caught:
        HuggingFaceSource(folder).read()
    assert repr(value) in str(caught.value)
    shape = key in ("num_hidden_layers", "hidden_size")
    assert shape or f"{key} is {value!r}, not" in str(caught.value)


@pytest.mark.parametrize("key", ["position_embedding_type", "token_dropout", "layer_norm_eps"])
def test_a_value_left_out_means_transformers_default_and_not_esm2_s(build, folder, key):
    build.huggingface().save_pretrained(folder)
    path = folder / "config.json"
    values = json.loads(path.read_text())
    del values[key]
    path.write_text(json.dumps(values))
    with pytest.raises(InputError, match=f"{key} is"):
        HuggingFaceSource(folder).read()


def break_folder(folder, how):
    index = folder / "model.safetensors.index.json"
    first = min(folder.glob("*.safetensors"))
    match how:
        case "no config.json":
            (folder / "config.json").unlink()
        case "not JSON":
            (folder / "config.json").write_text("{")
        case "not a JSON object":
            (folder / "config.json").write_text("[]")
        case "no weight_map":
            index.write_text("{}")
        case "outside its folder":
            index.write_text(json.dumps({"weight_map": {"a": "../model.safetensors"}}))
        case "which is not there":
            first.unlink()
        case "not a complete safetensors file":
            first.write_bytes(first.read_bytes()[:-1])
        case "in two files":
            shutil.copy(first, folder / "copy.safetensors")
            content = json.loads(index.read_text())
            content["weight_map"]["again"] = "copy.safetensors"
            index.write_text(json.dumps(content))
        case "missing tensors":
            content = json.loads(index.read_text())
            kept = {k: v for k, v in content["weight_map"].items() if v != first.name}
            index.write_text(json.dumps({"weight_map": kept}))
        case "holds no weights":
            shutil.rmtree(folder)
            folder.mkdir()
            (folder / "config.json").write_text("{}")


@pytest.mark.fault(37)
@pytest.mark.parametrize(
    "how",
    [
        "no config.json",
        "not JSON",
        "not a JSON object",
        "no weight_map",
        "outside its folder",
        "which is not there",
        "not a complete safetensors file",
        "in two files",
        "missing tensors",
        "holds no weights",
    ],
)
def test_damaged_folder_is_refused(build, folder, how):
    build.huggingface().save_pretrained(folder, max_shard_size="20KB")
    break_folder(folder, how)
    with pytest.raises(InputError, match=how):
        HuggingFaceSource(folder).read()


@pytest.mark.fault(36)
def test_malicious_pytorch_model_bin_runs_nothing(build, folder, tmp_path):
    build.huggingface().save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    target = tmp_path / "executed"
    torch.save({"a": Payload(os.system, f"touch {target}")}, folder / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"posix\.system"):
        HuggingFaceSource(folder).read()
    assert not target.exists()


def test_pytorch_model_bin_may_not_even_name_argparse(build, folder):
    build.huggingface().save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    torch.save({"a": argparse.Namespace()}, folder / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"argparse\.Namespace"):
        HuggingFaceSource(folder).read()


def test_fingerprint_of_a_folder_changes_with_each_file_that_is_read(build, folder):
    build.huggingface().save_pretrained(folder, max_shard_size="20KB")
    seen = {HuggingFaceSource(folder).fingerprint()}
    for path in HuggingFaceSource(folder).files:
        path.write_bytes(path.read_bytes() + b" ")
        seen.add(HuggingFaceSource(folder).fingerprint())
    assert len(seen) == 1 + len(HuggingFaceSource(folder).files)


# What a user's word means


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("esm2_t6_8M", "did you mean esm2_t6_8M_UR50D"),
        ("esm2_t33_650m_ur50d", "did you mean esm2_t33_650M_UR50D"),
        ("bert", "known: demo, esm2_t6_8M_UR50D, .*esm2_t48_15B_UR50D"),
        ("", "."),
        ("facebook/esm2_t6_8M_UR50D", "give the name esm2_t6_8M_UR50D"),
        ("models/esm2_t12_35M_UR50D.pt", "no such file"),
        ("model.pt", "no such file"),
    ],
)
def test_unknown_words_are_refused_with_what_was_meant(tmp_path, monkeypatch, word, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        find_source(word)


def test_a_single_safetensors_file_is_refused_with_a_hint(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(1)}, path)
    with pytest.raises(InputError, match=r"folder that has config\.json"):
        find_source(str(path))


# Downloads

NAME = "esm2_t6_8M_UR50D"
URL = f"https://dl.fbaipublicfiles.com/fair-esm/models/{NAME}.pt"


@pytest.fixture(scope="module")
def published_8m(build, tmp_path_factory):
    config = KNOWN_MODELS[NAME]
    path = tmp_path_factory.mktemp("published") / f"{NAME}.pt"
    torch.save(build.published(build.esm2(config.layers, config.dim, config.heads)), path)
    return path


@pytest.fixture
def network(monkeypatch):
    """A network whose every download does `network.answer(target)`; the addresses are kept."""

    class Network:
        asked: list[str]

        def __init__(self):
            self.asked = []

        def download(self, address, target, check):
            self.asked.append(address)
            target.parent.mkdir(parents=True, exist_ok=True)
            part = target.with_suffix(".part")
            try:
                self.answer(part)
                check(part)
                part.replace(target)
            finally:
                part.unlink(missing_ok=True)

        def answer(self, target):
            raise AssertionError("nothing should be downloaded")

    network = Network()
    monkeypatch.setattr(named, "download", network.download)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("TRANSFORMERS_OFFLINE", raising=False)
    return network


def test_address_is_fair_esm_s_own():
    assert ADDRESS.format(name=NAME) == URL


def test_model_is_downloaded_once_and_then_reused(network, published_8m, tmp_path):
    network.answer = lambda target: shutil.copy(published_8m, target)
    config, first = find_source(NAME, tmp_path / "cache").read()
    assert config == KNOWN_MODELS[NAME]
    assert [p.name for p in (tmp_path / "cache").iterdir()] == [f"{NAME}.pt"]
    _, second = find_source(NAME, tmp_path / "cache").read()
    assert network.asked == [URL]
    assert_same_tensors(first, second)


def test_download_goes_where_fair_esm_keeps_its_own(network, published_8m, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    target = tmp_path / "hub" / "checkpoints" / f"{NAME}.pt"
    target.parent.mkdir(parents=True)
    shutil.copy(published_8m, target)
    assert find_source(NAME).read()[0] == KNOWN_MODELS[NAME]
    assert network.asked == []


def test_size_and_licence_are_told_before_a_download(network, published_8m, tmp_path, caplog):
    def answer(target):
        network.told = list(caplog.messages)
        shutil.copy(published_8m, target)

    network.answer = answer
    with caplog.at_level("INFO"):
        find_source(NAME, tmp_path).read()
    assert "about 0.03 GB, MIT licence" in network.told[-1]
    assert URL in network.told[-1]


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
@pytest.mark.parametrize("value", ["1", "true", "Yes", "on"])
def test_a_switch_for_offline_use_forbids_downloads(
    network, published_8m, tmp_path, monkeypatch, variable, value
):
    monkeypatch.setenv(variable, value)
    with pytest.raises(DataError, match=f"{variable} is set") as caught:
        find_source(NAME, tmp_path).read()
    assert str(tmp_path / f"{NAME}.pt") in str(caught.value)
    assert network.asked == []
    shutil.copy(published_8m, tmp_path)
    assert find_source(NAME, tmp_path).read()[0] == KNOWN_MODELS[NAME]


@pytest.mark.parametrize("value", ["0", "", "false"])
def test_a_switch_that_is_off_forbids_nothing(network, published_8m, tmp_path, monkeypatch, value):
    monkeypatch.setenv("HF_HUB_OFFLINE", value)
    network.answer = lambda target: shutil.copy(published_8m, target)
    find_source(NAME, tmp_path).read()
    assert network.asked == [URL]


@pytest.mark.fault(44)
@pytest.mark.parametrize(
    "error",
    [
        urllib.error.URLError("Name or service not known"),
        urllib.error.HTTPError(URL, 403, "Forbidden", None, None),
        TimeoutError("timed out"),
        ConnectionResetError("reset"),
        OSError(28, "No space left on device"),
    ],
)
def test_failed_download_says_what_to_put_where(network, tmp_path, error):
    def answer(target):
        Path(target).write_bytes(b"half")
        raise error

    network.answer = answer
    with pytest.raises(DataError) as caught:
        find_source(NAME, tmp_path).read()
    assert URL in str(caught.value)
    assert str(tmp_path / f"{NAME}.pt") in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.fault(37)
def test_truncated_download_never_gets_its_name(network, published_8m, tmp_path):
    network.answer = lambda target: Path(target).write_bytes(published_8m.read_bytes()[:-1000])
    with pytest.raises(DataError, match="not usable") as caught:
        find_source(NAME, tmp_path).read()
    assert URL in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_download_of_another_model_is_refused(network, build, tmp_path):
    network.answer = lambda target: torch.save(build.published(build.esm2()), target)
    with pytest.raises(DataError, match=f"{NAME} has 6 layers"):
        find_source(NAME, tmp_path).read()
    assert list(tmp_path.iterdir()) == []
