import json
import shutil
import zipfile

import pytest
import torch

from virnucpro.errors import DataError
from virnucpro.model import named
from virnucpro.model.catalogue import list_models
from virnucpro.model.config import KNOWN_MODELS
from virnucpro.model.named import find_local
from virnucpro.model.sources import find_source
from virnucpro.model.weights import fetch_model

NAME = "esm2_t6_8M_UR50D"
CONFIG = KNOWN_MODELS[NAME]
COMMIT = "c731040fcd8d73dceaa04b0a8e6329b345b0f5df"


@pytest.fixture(scope="module")
def published_8m(build, tmp_path_factory):
    path = tmp_path_factory.mktemp("published") / f"{NAME}.pt"
    torch.save(build.published(build.esm2(CONFIG.layers, CONFIG.dim, CONFIG.heads)), path)
    return path


@pytest.fixture(scope="module")
def huggingface_8m(build, tmp_path_factory):
    folder = tmp_path_factory.mktemp("huggingface")
    build.huggingface(
        hidden_size=CONFIG.dim,
        num_hidden_layers=CONFIG.layers,
        num_attention_heads=CONFIG.heads,
    ).save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def no_download(monkeypatch):
    def refuse(*_):
        raise AssertionError("nothing should be downloaded")

    monkeypatch.setattr(named, "download", refuse)


def put_into_hub(hub, folder, commit=COMMIT, *, current=True):
    """Lay a folder out as huggingface_hub does: blobs, and snapshots that link to them."""
    model = hub / f"models--facebook--{NAME}"
    snapshot = model / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (model / "blobs").mkdir(exist_ok=True)
    for number, path in enumerate(sorted(folder.iterdir())):
        blob = model / "blobs" / f"{commit[:4]}{number}"
        shutil.copy(path, blob)
        (snapshot / path.name).symlink_to(f"../../blobs/{blob.name}")
    if current:
        (model / "refs").mkdir(exist_ok=True)
        (model / "refs" / "main").write_text(commit)
    return snapshot


@pytest.mark.parametrize(
    ("variable", "value", "inside"),
    [
        ("HF_HUB_CACHE", "hub", "hub"),
        ("HF_HOME", "home", "home/hub"),
        ("XDG_CACHE_HOME", "cache", "cache/huggingface/hub"),
        ("HOME", "user", "user/.cache/huggingface/hub"),
    ],
)
def test_hugging_face_cache_of_the_site_is_found_and_used(
    tmp_path, monkeypatch, huggingface_8m, variable, value, inside
):
    monkeypatch.delenv("HF_HOME")
    monkeypatch.setenv(variable, str(tmp_path / value))
    snapshot = put_into_hub(tmp_path / inside, huggingface_8m)
    found = find_local(NAME)
    assert found.name == NAME
    assert found.files[0] == snapshot / "config.json"
    config, _ = find_source(NAME).read()
    assert config == CONFIG


def test_current_revision_is_preferred_and_a_partial_one_left_aside(
    tmp_path, monkeypatch, huggingface_8m
):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    put_into_hub(tmp_path, huggingface_8m, "0" * 40, current=False)
    current = put_into_hub(tmp_path, huggingface_8m)
    assert find_local(NAME).files[0].parent == current
    (current / "model.safetensors").unlink()  # somebody fetched only the tokeniser
    assert find_local(NAME).files[0].parent == tmp_path / current.parents[1] / "snapshots" / (
        "0" * 40
    )


def test_file_of_fair_esm_is_preferred_to_a_hugging_face_copy(
    tmp_path, monkeypatch, published_8m, huggingface_8m
):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    put_into_hub(tmp_path / "hub", huggingface_8m)
    kept = tmp_path / "torch" / "hub" / "checkpoints" / f"{NAME}.pt"
    kept.parent.mkdir(parents=True)
    shutil.copy(published_8m, kept)
    assert find_local(NAME).files == (kept,)
    given = tmp_path / "given" / f"{NAME}.pt"
    given.parent.mkdir()
    shutil.copy(published_8m, given)
    assert find_local(NAME, given.parent).files == (given,)


def test_model_once_converted_stays_where_another_copy_turns_up(
    tmp_path, monkeypatch, published_8m, huggingface_8m
):
    files = tmp_path / "out.safetensors", tmp_path / "out.json"
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    put_into_hub(tmp_path / "hub", huggingface_8m)
    first = fetch_model(NAME, *files)
    shutil.copy(published_8m, tmp_path / f"{NAME}.pt")
    assert fetch_model(NAME, *files, download_dir=tmp_path) == first
    assert first["source_sha256"] == find_local(NAME).fingerprint()


def test_machine_without_network_is_told_exactly_what_to_copy_where(tmp_path, monkeypatch):
    def offline(*_):
        raise OSError("Name or service not known")

    monkeypatch.setattr(named, "download", offline)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(DataError) as caught:
        find_source(NAME).read()
    text = str(caught.value)
    target = tmp_path / "hub" / "checkpoints" / f"{NAME}.pt"
    address = f"https://dl.fbaipublicfiles.com/fair-esm/models/{NAME}.pt"
    assert f"curl --location --remote-name {address}\n      {target}\n" in text
    assert f"huggingface.co/facebook/{NAME}" in text
    assert str(tmp_path / "no-huggingface" / "hub") in text


def test_file_that_was_copied_there_by_hand_is_used(tmp_path, monkeypatch, published_8m):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    target = tmp_path / "hub" / "checkpoints" / f"{NAME}.pt"
    target.parent.mkdir(parents=True)
    shutil.copy(published_8m, target)
    assert find_source(NAME).read()[0] == CONFIG


def test_bit_that_flipped_on_the_way_is_found(tmp_path, monkeypatch, published_8m):
    damaged = bytearray(published_8m.read_bytes())
    with zipfile.ZipFile(published_8m) as archive:
        largest = max(archive.infolist(), key=lambda info: info.file_size)
    damaged[largest.header_offset + largest.file_size // 2] ^= 1

    def answer(_address, target, check):
        target.write_bytes(damaged)
        check(target)

    monkeypatch.setattr(named, "download", answer)
    with pytest.raises(DataError, match=r"not usable: .* in it is damaged"):
        find_source(NAME, tmp_path).read()


def test_list_has_all_sizes_and_says_what_is_here(tmp_path, monkeypatch, huggingface_8m):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    put_into_hub(tmp_path, huggingface_8m)
    models = {entry["name"]: entry for entry in list_models()}
    assert list(models) == list(KNOWN_MODELS)
    assert json.loads(json.dumps(models)) == models
    assert COMMIT in models[NAME]["found"]
    assert models["esm2_t33_650M_UR50D"]["found"] is None
    assert models["esm2_t33_650M_UR50D"]["dimension"] == 1280
    # fair-esm: 651,043,254 parameters with the contact head's 661
    assert models["esm2_t33_650M_UR50D"]["parameters"] == 651_043_254 - 661
    assert models["esm2_t33_650M_UR50D"]["memory_bytes"]["float16"] == 2 * 651_042_593
    assert {entry["licence"] for entry in models.values()} == {"MIT"}


MEMORY = """
import sys, threading, time
from pathlib import Path
from virnucpro.model.weights import fetch_model
peak = lambda: int(open("/proc/self/status").read().split("RssAnon:")[1].split()[0])
folder, out = Path(sys.argv[1]), Path(sys.argv[2])
before = peak()
highest, stop = [before], threading.Event()
def watch():
    while not stop.is_set():
        highest.append(peak()); time.sleep(0.002)
thread = threading.Thread(target=watch); thread.start()
fetch_model(str(folder), out / "w.safetensors", out / "w.json")
stop.set(); thread.join()
print((max(highest) - before) // 1024)
"""


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_sharded_model_is_converted_without_ever_being_in_memory(build, tmp_path, kind):
    """200 MB in five files, as the largest models are published, in less memory than one copy."""
    import os
    import subprocess
    import sys

    model = build.huggingface(hidden_size=1024, num_hidden_layers=4)
    folder = tmp_path / "esm2_sharded"
    model.save_pretrained(folder, max_shard_size="60MB")
    shards = sorted(folder.glob("*.safetensors"))
    assert len(shards) >= 4
    if kind == "bin":
        as_pytorch_bins(folder, shards)
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(folder), str(tmp_path)],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert (tmp_path / "w.safetensors").stat().st_size > 200e6
    assert int(done.stdout) < 60  # MiB beyond the start


def as_pytorch_bins(folder, shards):
    from safetensors.torch import load_file

    for shard in shards:
        torch.save(load_file(shard), shard.with_suffix(".bin"))
        shard.unlink()
    index = folder / "model.safetensors.index.json"
    text = index.read_text().replace(".safetensors", ".bin")
    (folder / "pytorch_model.bin.index.json").write_text(text)
    index.unlink()
