import hashlib
import json
import logging
import os
import socket
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from virnucpro.errors import DataError, InputError
from virnucpro.files import read_json, write_json
from virnucpro.formats import MODEL_FORMAT
from virnucpro.model import named
from virnucpro.model.config import KNOWN_MODELS, expected_tensors
from virnucpro.model.sources import find_source
from virnucpro.model.tensorfile import read_tensors, write_tensors
from virnucpro.model.weights import fetch_model, load_weights, verify_model

DEMO_SHA256 = "7e1caa181e43f962c646868a2bfec861f51baa9b88c1c9f05601564ef43df048"
NAME = "esm2_t6_8M_UR50D"


@pytest.fixture
def files(tmp_path):
    """Final paths of weights and receipt, in a folder that is not there yet."""
    folder = tmp_path / "resources" / "models"
    return folder / "model.safetensors", folder / "model.json"


@pytest.fixture
def converted(build, publish, files):
    """A converted tiny model: its .pt, its weights, its receipt."""
    path = publish(build.esm2())
    fetch_model(str(path), *files)
    return path, *files


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def edit_receipt(receipt: Path, **changes):
    write_json(receipt, read_json(receipt) | changes)


# The receipt


def test_receipt_says_what_the_weights_are(build, publish, files):
    path = publish(build.esm2(), "esm2_mine")
    returned = fetch_model(str(path), *files)
    weights, receipt = files
    assert read_json(receipt) == returned
    assert returned == {
        "format": MODEL_FORMAT,
        "name": "esm2_mine",
        "source": str(path),
        "source_sha256": sha256(path),
        "weights_sha256": sha256(weights),
        "layers": 2,
        "dim": 32,
        "heads": 4,
        "parameters": sum(t.numel() for n, t in load_file(weights).items() if "rotary" not in n),
        "dtype": "float32",
        "has_lm_head": True,
        "demo": False,
    }


def test_source_is_recorded_as_given(build, publish, files, monkeypatch):
    path = publish(build.esm2())
    monkeypatch.chdir(path.parent)
    assert fetch_model("./esm2_tiny.pt", *files)["source"] == "./esm2_tiny.pt"


def test_header_names_the_model(converted):
    with safe_open(converted[1], framework="pt") as handle:
        assert handle.metadata() == {
            "format": str(MODEL_FORMAT),
            "name": "esm2_tiny",
            "layers": "2",
            "dim": "32",
            "heads": "4",
        }


# Round trips


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_published_file_comes_back_equal_in_its_own_dtype(build, publish, files, dtype):
    path = publish(build.esm2().to(dtype))
    fetch_model(str(path), *files)
    _, expected = find_source(str(path)).read()
    config, found = load_weights(*files)
    assert (config.layers, config.dim, config.heads) == (2, 32, 4)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert found["embed_tokens.weight"].dtype is dtype


def test_safetensors_own_reader_agrees(converted):
    _, ours = load_weights(*converted[1:])
    theirs = load_file(converted[1])
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[name], ours[name]) for name in ours)


def test_huggingface_folder_and_published_file_of_one_model_convert_to_one_state(
    build, publish, files, tmp_path
):
    theirs = build.huggingface()
    theirs.save_pretrained(tmp_path / "esm2_hf")
    fetch_model(str(tmp_path / "esm2_hf"), *files)
    _, state = load_weights(*files)
    model = build.esm2()
    model.load_state_dict(
        {k: v for k, v in state.items() if "rotary" not in k}
        | {"lm_head.weight": state["embed_tokens.weight"]},
        strict=False,
    )
    path = publish(model)
    again = (files[0].with_name("b.safetensors"), files[1].with_name("b.json"))
    fetch_model(str(path), *again)
    _, second = load_weights(*again)
    assert state.keys() == second.keys()
    assert all(torch.equal(state[name], second[name]) for name in state)


def test_weights_without_the_language_model_head_are_whole(build, files, tmp_path):
    build.huggingface("EsmModel").save_pretrained(tmp_path / "esm2_hf")
    receipt = fetch_model(str(tmp_path / "esm2_hf"), *files)
    config, state = load_weights(*files)
    assert receipt["has_lm_head"] is False
    assert receipt["parameters"] == config.parameters()
    assert not [name for name in state if name.startswith("lm_head")]


@pytest.mark.parametrize("order", [1, -1])
def test_order_of_the_tensors_in_the_source_does_not_change_a_byte(build, publish, files, order):
    def edit(content):
        content["model"] = dict(list(content["model"].items())[::order])

    fetch_model(str(publish(build.esm2(), edit=edit)), *files)
    assert sha256(files[0]) == fetch_hash(build, publish, files)


def fetch_hash(build, publish, files):
    again = (files[0].with_name("again.safetensors"), files[1].with_name("again.json"))
    return fetch_model(str(publish(build.esm2())), *again)["weights_sha256"]


def test_header_keeps_values_aligned(build, publish, files):
    """A wider type behind a narrower one would stand at an odd place (readers then copy)."""
    fetch_model(str(publish(build.esm2().half())), *files)
    raw = files[0].read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    sizes = {"F32": 4, "F16": 2}
    assert length % 8 == 0
    for name, entry in header.items():
        if name != "__metadata__":
            assert entry["data_offsets"][0] % sizes[entry["dtype"]] == 0


def test_conversion_never_holds_the_weights_in_memory(tmp_path):
    """A 200 MB model through the writer under a limit that one copy of it would break."""
    import subprocess
    import sys

    script = """
import resource, sys, torch
from pathlib import Path
from virnucpro.model.tensorfile import write_tensors
from virnucpro.model.pickles import load_tensors_only
folder = Path(sys.argv[1])
peak = lambda: int(open("/proc/self/status").read().split("RssAnon:")[1].split()[0])
write_tensors(folder / "warm", {"a": torch.zeros(4)}, {})
tensors = load_tensors_only(folder / "big.pt")
before = peak()
highest = [before]
import threading, time
stop = threading.Event()
def watch():
    while not stop.is_set():
        highest.append(peak()); time.sleep(0.002)
thread = threading.Thread(target=watch); thread.start()
write_tensors(folder / "big.safetensors", tensors, {})
stop.set(); thread.join()
print((max(highest) - before) // 1024)
"""
    tensors = {str(i): torch.full((1024, 6400), float(i)) for i in range(8)}
    torch.save(tensors, tmp_path / "big.pt")
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert (tmp_path / "big.safetensors").stat().st_size > 200e6
    assert int(done.stdout) < 60  # MiB beyond the start


# The demonstration model


def test_demo_has_the_same_bytes_everywhere(files):
    receipt = fetch_model("demo", *files)
    assert receipt["weights_sha256"] == DEMO_SHA256 == sha256(files[0])
    assert receipt["demo"] is True
    assert receipt["name"] == "demo"


def test_demo_is_announced_as_carrying_no_biology(files, caplog):
    with caplog.at_level(logging.WARNING, "virnucpro"):
        fetch_model("demo", *files)
    assert "NO BIOLOGY" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING, "virnucpro"):
        fetch_model("demo", *files)
    assert "NO BIOLOGY" in caplog.text  # also when it is there already


def test_demo_is_on_the_scale_of_fair_esm_s_initialisation(build, files):
    fetch_model("demo", *files)
    config, state = load_weights(*files)
    assert config == KNOWN_MODELS["demo"]
    torch.manual_seed(0)
    from esm.model.esm2 import ESM2

    theirs = ESM2(config.layers, config.dim, config.heads).state_dict()
    for name in expected_tensors(config):
        if name.endswith("weight"):
            assert state[name].std().item() == pytest.approx(theirs[name].std().item(), rel=0.05)
            assert state[name].mean().item() == pytest.approx(theirs[name].mean().item(), abs=0.02)
    assert not state["embed_tokens.weight"][1].any()


# Converting once


def stamp(files):
    return [(path.stat().st_ino, path.read_bytes()) for path in files]


@pytest.mark.parametrize("kind", ["demo", "pt", "folder"])
def test_second_fetch_leaves_the_files_alone(build, publish, files, tmp_path, caplog, kind):
    if kind == "folder":
        build.huggingface().save_pretrained(tmp_path / "esm2_hf")
    sources = {"demo": "demo", "folder": str(tmp_path / "esm2_hf")}
    source = sources.get(kind) or str(publish(build.esm2()))
    first = fetch_model(source, *files)
    before = stamp(files)
    with caplog.at_level(logging.INFO, "virnucpro"):
        assert fetch_model(source, *files) == first
    assert "already converted" in caplog.text
    assert stamp(files) == before


def test_new_content_under_the_same_path_is_converted_again(build, publish, converted):
    path, *files = converted
    before = stamp(files)
    publish(build.esm2(seed=1))
    fetch_model(str(path), *files)
    assert stamp(files) != before
    assert load_weights(*files)


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "receipt", "old receipt"])
def test_damaged_conversion_is_made_again_byte_for_byte(converted, damage):
    path, weights, receipt = converted
    before = weights.read_bytes(), receipt.read_bytes()
    if damage == "flip":
        weights.write_bytes(before[0][:-1] + bytes([before[0][-1] ^ 1]))
    elif damage == "truncate":
        weights.write_bytes(before[0][:-1])
    elif damage == "remove":
        weights.unlink()
    elif damage == "receipt":
        receipt.write_text("{}")
    else:
        edit_receipt(receipt, format=MODEL_FORMAT - 1)
    fetch_model(str(path), weights, receipt)
    assert (weights.read_bytes(), receipt.read_bytes()) == before


@pytest.mark.fault(2)
def test_weights_whose_receipt_was_never_written_count_as_absent(
    build, publish, files, monkeypatch
):
    path = publish(build.esm2())

    def fail(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("virnucpro.model.weights.write_receipt", fail)
        with pytest.raises(OSError, match="No space"):
            fetch_model(str(path), *files)
    with pytest.raises(DataError, match="missing"):
        load_weights(*files)
    fetch_model(str(path), *files)
    assert load_weights(*files)


@pytest.mark.fault(5)
def test_failed_write_leaves_nothing(build, publish, files, monkeypatch):
    path = publish(build.esm2())

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        fetch_model(str(path), *files)
    assert list(files[0].parent.glob("*")) == []


@pytest.mark.parametrize("target", [0, 1])
def test_a_source_is_never_overwritten(build, tmp_path, target):
    folder = tmp_path / "esm2_hf"
    build.huggingface().save_pretrained(folder)
    before = sha256(folder / "model.safetensors")
    targets = [tmp_path / "a.safetensors", tmp_path / "a.json"]
    targets[target] = folder / ("model.safetensors", "config.json")[target]
    with pytest.raises(InputError, match="overwrite its own source"):
        fetch_model(str(folder), *targets)
    assert sha256(folder / "model.safetensors") == before


def test_refused_source_leaves_an_earlier_conversion_whole(build, publish, converted):
    path, *files = converted
    before = stamp(files)
    path.write_bytes(b"garbage")
    with pytest.raises(InputError):
        fetch_model(str(path), *files)
    assert stamp(files) == before


@pytest.mark.fault(37)
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_weights_that_are_not_finite_are_refused(value, build, publish, files):
    model = build.esm2()
    with torch.no_grad():
        model.layers[1].fc1.weight[3, 0] = value
    with pytest.raises(InputError, match=r"NaN or infinity in layers\.1\.fc1\.weight"):
        fetch_model(str(publish(model)), *files)
    assert not any(path.exists() for path in files)


# A node without network


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.fault(44)
def test_loading_looks_nothing_up(converted, no_network):
    assert load_weights(*converted[1:])


@pytest.mark.fault(44)
def test_named_model_that_is_converted_needs_neither_network_nor_download(
    build, files, tmp_path, monkeypatch, no_network
):
    config = KNOWN_MODELS[NAME]
    content = build.published(build.esm2(config.layers, config.dim, config.heads))
    torch.save(content, tmp_path / f"{NAME}.pt")
    first = fetch_model(NAME, *files, download_dir=tmp_path)
    assert (first["source"], first["name"]) == (NAME, NAME)
    (tmp_path / f"{NAME}.pt").unlink()
    assert fetch_model(NAME, *files, download_dir=tmp_path) == first


def test_download_is_hashed_for_the_receipt(build, files, tmp_path, monkeypatch):
    config = KNOWN_MODELS[NAME]
    content = build.published(build.esm2(config.layers, config.dim, config.heads))

    def download(address, target, check):
        target.parent.mkdir()
        torch.save(content, target)

    monkeypatch.setattr(named, "download", download)
    receipt = fetch_model(NAME, *files, download_dir=tmp_path / "cache")
    assert receipt["source_sha256"] == sha256(tmp_path / "cache" / f"{NAME}.pt")


# Loading: nothing wrong gets through


def test_weights_load_without_a_receipt(converted):
    config, _ = load_weights(converted[1], None)
    assert config.name == "esm2_tiny"


@pytest.mark.parametrize("missing", [0, 1])
def test_missing_file_is_named(converted, missing):
    files = converted[1:]
    files[missing].unlink()
    with pytest.raises(DataError, match="missing") as caught:
        load_weights(*files)
    assert str(files[missing]) in str(caught.value)


@pytest.mark.fault(37)
@pytest.mark.parametrize("place", [0.2, 0.5, 1])
def test_a_flipped_bit_is_found_and_both_hashes_are_named(converted, place):
    _, weights, receipt = converted
    recorded = json.loads(receipt.read_text())["weights_sha256"]
    raw = bytearray(weights.read_bytes())
    raw[int(place * (len(raw) - 1))] ^= 1
    weights.write_bytes(raw)
    with pytest.raises(DataError) as caught:
        load_weights(weights, receipt)
    assert recorded in str(caught.value)
    assert sha256(weights) in str(caught.value)
    assert "virnucpro model fetch" in str(caught.value)


@pytest.mark.fault(37)
@pytest.mark.parametrize("kept", [0, 7, 8, 100, 0.5, -1])
def test_truncated_weights_are_found(converted, kept):
    _, weights, receipt = converted
    raw = weights.read_bytes()
    weights.write_bytes(raw[: int(kept * len(raw)) if kept == 0.5 else kept])
    with pytest.raises(DataError, match="not a complete safetensors file") as caught:
        load_weights(weights, receipt)
    assert "virnucpro model fetch" in str(caught.value)


@pytest.mark.fault(37)
def test_receipts_of_two_models_cannot_be_swapped(build, publish, files, converted):
    other = publish(build.esm2(seed=1), "esm2_other")
    theirs = (files[0].with_name("other.safetensors"), files[1].with_name("other.json"))
    fetch_model(str(other), *theirs)
    with pytest.raises(DataError, match=r"esm2_tiny.*esm2_other"):
        load_weights(files[0], theirs[1])
    # also where both models have one name
    edit_receipt(theirs[1], name="esm2_tiny")
    with pytest.raises(DataError, match="sha256"):
        load_weights(files[0], theirs[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": "two"}, "see layers"),
        ({"layers": True}, "see layers"),
        ({"demo": 0}, "see demo"),
        ({"name": None}, "see name"),
        ({"more": 1}, "see more"),
        ({"layers": 3}, "layers=3"),
        ({"weights_sha256": "0" * 64}, "0" * 64),
    ],
)
def test_wrong_receipt_is_refused(converted, change, message):
    _, weights, receipt = converted
    edit_receipt(receipt, **change)
    with pytest.raises(DataError, match=message):
        load_weights(weights, receipt)


@pytest.mark.fault(12)
def test_receipt_of_another_format_is_refused(converted):
    edit_receipt(converted[2], format=MODEL_FORMAT + 1)
    with pytest.raises(InputError, match=f"format {MODEL_FORMAT + 1}"):
        load_weights(*converted[1:])


def rewrite(weights, edit, **metadata):
    """Write the weights again with other tensors or metadata, as no receipt would know."""
    header, tensors = read_tensors(weights)
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    edit(tensors)
    write_tensors(weights, tensors, header | metadata)


@pytest.mark.fault(37)
@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t.pop("layers.1.fc1.weight"), r"missing tensors: layers\.1\.fc1\.weight"),
        (lambda t: t.pop("lm_head.bias"), r"missing tensors: lm_head\.bias"),
        (lambda t: t.update(extra=torch.ones(1)), "unexpected tensors: extra"),
        (lambda t: t.update({"layers.0.fc1.bias": torch.ones(5)}), r"fc1\.bias is \[5\]"),
        (lambda t: t.update({"layers.0.fc1.bias": torch.ones(128).half()}), "float16, float32"),
        (lambda t: t.update({"rotary.inv_freq": torch.ones(4).half()}), "inv_freq is not float32"),
    ],
)
def test_wrong_tensors_are_refused_even_without_a_receipt(converted, edit, message):
    rewrite(converted[1], edit)
    with pytest.raises(DataError, match=message):
        load_weights(converted[1], None)


@pytest.mark.parametrize(
    "metadata", [{"layers": "x"}, {"layers": "0"}, {"dim": "31"}, {"heads": "3"}]
)
def test_wrong_metadata_is_refused(converted, metadata):
    rewrite(converted[1], lambda _: None, **metadata)
    with pytest.raises(DataError, match="was not written by"):
        load_weights(converted[1], None)


def test_weights_of_another_format_are_refused(converted):
    rewrite(converted[1], lambda _: None, format="99")
    with pytest.raises(InputError, match="format 99"):
        load_weights(converted[1], None)


def test_a_foreign_safetensors_file_is_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(1)}, path)
    with pytest.raises(DataError, match="was not written by"):
        load_weights(path, None)


def test_verify_reports_what_was_checked(converted):
    _, weights, receipt = converted
    report = verify_model(weights, receipt)
    assert report == read_json(receipt) | {"tensors": len(load_file(weights))}


@pytest.mark.parametrize(
    "change", [{"parameters": 1}, {"dtype": "float16"}, {"has_lm_head": False}]
)
def test_verify_refuses_a_receipt_that_describes_other_tensors(converted, change):
    edit_receipt(converted[2], **change)
    with pytest.raises(DataError, match=f"says {next(iter(change))}"):
        verify_model(*converted[1:])


def test_verify_finds_a_flipped_bit(converted):
    _, weights, receipt = converted
    raw = bytearray(weights.read_bytes())
    raw[-5] ^= 4
    weights.write_bytes(raw)
    with pytest.raises(DataError, match="sha256"):
        verify_model(weights, receipt)
