"""Files given as a model that are none: what was found and what was expected, in a sentence."""

import argparse
import json
import os
import pickle
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from virnucpro.errors import InputError
from virnucpro.model.sources import find_source
from virnucpro.model.weights import fetch_model

# What torch says of a file that it refuses, and what no user is to read.
ADVICE = re.compile(r"weights.only|safe.globals|trusted source|arbitrary code", re.IGNORECASE)
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 30\n"


def zipped(*names):
    def write(path):
        with zipfile.ZipFile(path, "w") as archive:
            for name in names:
                archive.writestr(name, "x")

    return write


def saved(content, **options):
    return lambda path: torch.save(content, path, **options)


def cut(content, kept):
    def write(path):
        torch.save(content, path)
        path.write_bytes(path.read_bytes()[:kept])

    return write


def numpy_file(save):
    def write(path):
        with path.open("wb") as handle:
            save(handle, np.ones(3))

    return write


def data(content):
    return lambda path: path.write_bytes(content)


LEGACY = {"_use_new_zipfile_serialization": False}
FILES = {
    "a tensor": (saved(torch.ones(3, 4)), "one tensor of shape [3, 4]"),
    "a tensor, old format": (saved(torch.ones(3, 4), **LEGACY), "one tensor of shape [3, 4]"),
    "a list": (saved([torch.ones(2)]), "one value of type list"),
    "a number": (saved(3), "one value of type int"),
    "an array": (saved(np.ones(3)), "NumPy arrays"),
    "an array, old format": (saved(np.ones(3), **LEGACY), "NumPy arrays"),
    "a pickled array": (data(pickle.dumps(np.ones(3))), "a pickle that torch.save has not"),
    "a pickled dict": (data(pickle.dumps({"a": 1}, protocol=2)), "a pickle that torch.save has"),
    "npy": (numpy_file(np.save), "a NumPy array (.npy)"),
    "npz": (numpy_file(np.savez), "NumPy arrays (.npz)"),
    "a state dict alone": (
        saved({"a.weight": torch.ones(2), "a.bias": torch.ones(2)}),
        "the 2 tensors of a state dict alone (a.weight, a.bias)",
    ),
    "a training checkpoint": (
        saved({"epoch": 3, "state_dict": {}}),
        "a dict with epoch, state_dict",
    ),
    "an empty dict": (saved({}), "a dict with nothing in it"),
    "ESM-1b or ESM-1v": (
        saved({"args": argparse.Namespace(arch="roberta_large"), "model": {}}),
        "the ESM-1 family (architecture 'roberta_large')",
    ),
    "the contact regression": (
        saved({"model": {"contact_head.regression.weight": torch.ones(2)}}),
        "regression weights for contacts",
    ),
    "no Namespace in cfg": (saved({"cfg": {"model": torch.ones(2)}, "model": {}}), "cfg, model"),
    "cfg of another kind": (saved({"cfg": torch.ones(2), "model": {}}), "cfg, model"),
    "a whole module": (saved(torch.nn.Linear(2, 2)), "it asks for torch.nn.modules.linear.Linear"),
    "TorchScript": (
        lambda path: torch.jit.script(torch.nn.Linear(2, 2)).save(path),
        "a TorchScript program",
    ),
    "a zip archive": (zipped("a.txt", "b/c.txt"), "that PyTorch has not written (of a.txt, b/c"),
    "an empty zip archive": (data(b"PK\x05\x06" + bytes(18)), "not a complete PyTorch file"),
    "HTML": (data(b"\n<!DOCTYPE html>\n<html>404</html>"), "a web page or XML"),
    "JSON": (data(b'{"message": "Not Found"}'), "JSON"),
    "a Git LFS pointer": (data(LFS), "a Git LFS pointer"),
    "text": (data(b"404: Not Found\n"), "text ('404: Not Found"),
    "a word": (data(b"junk\n"), "text ('junk"),
    "FASTA": (data(b">a\nMKVLA\n"), "a FASTA file"),
    "gzip": (data(b"\x1f\x8b\x08\0" + bytes(20)), "compressed with gzip"),
    "tar": (data(b"a".ljust(257, b"\0") + b"ustar\0" + bytes(300)), "a tar archive"),
    "Keras": (data(b"\x89HDF\r\n\x1a\n" + bytes(20)), "an HDF5 file"),
    "safetensors": (lambda path: save_file({"a": torch.ones(9)}, path), "a safetensors file"),
    "empty": (data(b""), "is empty"),
    "zeros": (data(bytes(2000)), "a file of zeros"),
    "cut off": (cut({"a": torch.ones(900)}, 1000), "not a complete PyTorch file"),
    "noise": (data(bytes(range(128, 256)) * 9), "not a complete PyTorch file"),
}


@pytest.mark.fault(37)
@pytest.mark.parametrize("case", FILES)
def test_file_that_is_no_model_is_named_for_what_it_is(case, tmp_path, recwarn):
    write, found = FILES[case]
    path = tmp_path / "model.pt"
    write(path)
    recwarn.clear()
    with pytest.raises(InputError) as caught:
        find_source(str(path)).read()
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert found in text
    assert caught.value.hint
    assert not ADVICE.search(text)
    assert len(caught.value.message) < 250
    assert not list(recwarn)  # torch warns too


def test_only_what_is_expected_passes_as_that(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(LFS)
    with pytest.raises(InputError, match=r"is a Git LFS pointer.*; a safetensors file is expected"):
        find_source(str(path))


CONFIG = {
    "model_type": "esm",
    "vocab_size": 33,
    "mask_token_id": 32,
    "pad_token_id": 1,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "position_embedding_type": "rotary",
    "token_dropout": True,
    "layer_norm_eps": 1e-5,
}
BERT = {"model_type": "bert", "architectures": ["BertModel"]}
ESM1B = CONFIG | {"position_embedding_type": "absolute", "emb_layer_norm_before": True}
FOLDERS = {
    "BERT": (
        {"config.json": BERT, "model.safetensors": b""},
        "model_type is 'bert', not 'esm' (architectures: ['BertModel'])",
    ),
    "ESM-1b": ({"config.json": ESM1B, "model.safetensors": b""}, "not ESM-2 but ESM-1b or ESM-1v"),
    "no model_type": ({"config.json": {}, "model.safetensors": b""}, "model_type is None"),
    "TensorFlow": (
        {"config.json": CONFIG, "tf_model.h5": b""},
        "that can be read, only tf_model.h5",
    ),
    "Flax": ({"config.json": CONFIG, "flax_model.msgpack": b""}, "only flax_model.msgpack"),
    "no weights": ({"config.json": CONFIG}, "holds no weights\n"),
    "no config.json": (
        {"model.safetensors": b"", "x.txt": b""},
        "(found: model.safetensors, x.txt)",
    ),
    "nothing": ({}, "(found: nothing)"),
    "a .pt file": ({"esm2.pt": b""}, "for the .pt file give its own path"),
    "the hub's cache": (
        {"snapshots/0a1b/config.json": {}},
        "did you mean {folder}/snapshots/0a1b?",
    ),
    "a folder of models": ({"small/config.json": {}}, "did you mean {folder}/small?"),
    "LFS weights": ({"config.json": CONFIG, "model.safetensors": LFS}, "is a Git LFS pointer"),
    "LFS .bin": ({"config.json": CONFIG, "pytorch_model.bin": LFS}, "is a Git LFS pointer"),
    "LFS config": ({"config.json": LFS, "model.safetensors": b""}, "JSON is expected"),
    "LFS index": (
        {"config.json": CONFIG, "model.safetensors.index.json": LFS},
        "is a Git LFS pointer",
    ),
    "empty config": ({"config.json": b"", "model.safetensors": b""}, "is empty; JSON is expected"),
    "deep config": ({"config.json": b"[" * 99_999, "model.safetensors": b""}, "JSON is expected"),
    "empty weights": ({"config.json": CONFIG, "model.safetensors": b""}, "is empty; a safetensors"),
    "short weights": (
        {"config.json": CONFIG, "model.safetensors": b"\x08\0"},
        "not a complete saf",
    ),
    "HTML": ({"config.json": CONFIG, "model.safetensors": b"<html>"}, "a web page or XML"),
}


@pytest.mark.fault(37)
@pytest.mark.parametrize("case", FOLDERS)
def test_folder_that_is_no_model_is_named_for_what_it_is(case, tmp_path):
    files, found = FOLDERS[case]
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    with pytest.raises(InputError) as caught:
        find_source(str(folder)).read()
    assert found.format(folder=folder) in str(caught.value)
    assert caught.value.hint or "JSON" in found


def test_cut_off_safetensors_is_not_called_another_format(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    save_file({"a": torch.ones(9)}, tmp_path / "model.safetensors")
    content = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(content[:-1])
    with pytest.raises(InputError, match="not a complete safetensors file"):
        find_source(str(tmp_path)).read()


def test_bin_that_is_no_state_dict_is_named(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    torch.save(torch.ones(2), tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"holds one tensor of shape \[2\], not a state dict"):
        find_source(str(tmp_path)).read()


def test_wrong_model_ends_the_command_with_2_and_leaves_nothing(tmp_path):
    torch.save(torch.ones(3, 4), tmp_path / "tensor.pt")
    done = subprocess.run(
        [sys.executable, "-m", "virnucpro", "model", "fetch", "tensor.pt"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "error: tensor.pt: holds one tensor of shape [3, 4]" in done.stderr
    assert "Traceback" not in done.stderr
    assert not ADVICE.search(done.stderr)
    assert os.listdir(tmp_path) == ["tensor.pt"]


def test_memory_that_runs_out_is_not_blamed_on_the_file(build, publish, tmp_path, monkeypatch):
    def load(*_arguments, **_options):
        raise MemoryError

    path = publish(build.esm2())
    monkeypatch.setattr(torch, "load", load)
    with pytest.raises(MemoryError):
        fetch_model(str(path), tmp_path / "w.safetensors", Path(tmp_path / "r.json"))
