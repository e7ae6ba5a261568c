import ast
import fcntl
import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from virnucpro.doctor import compute, hardware, places, software
from virnucpro.doctor.checks import CHECKS, describe, run_checks
from virnucpro.doctor.finding import Settings, ok
from virnucpro.embed.device_lock import LOCK_DIR
from virnucpro.model import devices
from virnucpro.model.attention import SequenceAttention
from virnucpro.model.weights import fetch_model
from virnucpro.report import rates

CARD = "NVIDIA L4, 8.9, 23034 MiB, 570.86.15"


@pytest.fixture
def settings(tmp_path):
    return Settings(tmp_path, tmp_path / "cache", device="cpu", seconds=0.01)


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Put a program of this name and text on the PATH, alone."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def write(name, text):
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)

    return write


def assert_broken(finding, text, remedy):
    assert finding.status == "broken", finding
    assert text in finding.text
    assert remedy in finding.remedy


# ---- driver, devices, backend -------------------------------------------------------------------


def test_driver_is_known_by_nvidia_smi(settings, program):
    program("nvidia-smi", f"echo '{CARD}'; echo '{CARD}'")
    assert hardware.check_driver(settings) == ok("driver", "570.86.15, 2 GPU(s)")


def test_no_driver_is_no_fault(settings, program, monkeypatch, tmp_path):
    monkeypatch.setattr(hardware, "_CONTROL", tmp_path / "none")
    assert hardware.check_driver(settings).status == "absent"
    monkeypatch.setattr(hardware, "_CONTROL", tmp_path)
    finding = hardware.check_driver(settings)
    assert (finding.status, "not on the PATH" in finding.text) == ("warning", True)


@pytest.mark.parametrize(
    ("program_text", "said"),
    [
        ("echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18", "mismatch"),
        ("exit 9", "exit status 9"),
        ("echo 'GPU 0: NVIDIA L4'", "GPU 0: NVIDIA L4"),
    ],
)
def test_nvidia_smi_that_fails_is_broken(settings, program, program_text, said):
    program("nvidia-smi", program_text)
    assert_broken(hardware.check_driver(settings), said, "reboot")


def test_node_without_a_gpu_of_its_own_is_warned_of(settings, program):
    program("nvidia-smi", "echo 'No devices were found'")
    assert hardware.check_driver(settings).status == "warning"


# What nvidia-smi says to each who asks.
ANSWERS = f"""
case "$1" in
  -L) echo 'GPU 0: NVIDIA L4 (UUID: GPU-1)' ;;
  --query-gpu=driver_version) echo 570.86.15 ;;
  *) echo '{CARD}' ;;
esac
"""


def no_cuda(monkeypatch, built_for):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", built_for)


def test_gpu_that_a_build_without_cuda_cannot_use_is_broken(settings, program, monkeypatch):
    no_cuda(monkeypatch, None)
    program("nvidia-smi", ANSWERS)
    finding = hardware.check_devices(replace(settings, device="auto"))
    assert_broken(finding, "built for CPUs alone", "--index-url")
    assert "NVIDIA L4, compute capability 8.9, 23034 MiB" in finding.text


def test_gpu_that_the_driver_is_too_old_for_is_broken(settings, program, monkeypatch):
    def init():
        raise RuntimeError("The NVIDIA driver on your system is too old\nmore")

    no_cuda(monkeypatch, "99.0")
    monkeypatch.setattr(torch.cuda, "init", init)
    program("nvidia-smi", ANSWERS)
    finding = hardware.check_devices(replace(settings, device="auto"))
    assert_broken(finding, "The NVIDIA driver on your system is too old", "cu126")
    assert "driver 570.86.15" in finding.text


def test_hidden_gpu_is_warned_of(settings, program, monkeypatch):
    no_cuda(monkeypatch, "13.0")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    program("nvidia-smi", ANSWERS)
    finding = hardware.check_devices(replace(settings, device="auto", visible=""))
    assert (finding.status, "CUDA_VISIBLE_DEVICES is ''" in finding.text) == ("warning", True)


def test_gpu_that_cannot_compute_is_broken(settings, program, monkeypatch):
    def no_image(_device):
        raise RuntimeError("CUDA error: no kernel image is available\nmore")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _index: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (8, 9))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "NVIDIA L4")
    monkeypatch.setattr(devices, "_run_a_kernel", no_image)
    program("nvidia-smi", ANSWERS)
    assert_broken(
        hardware.check_devices(replace(settings, device="auto")),
        "no kernel image is available",
        "install torch",
    )
    monkeypatch.setattr(devices, "_run_a_kernel", lambda _device: None)
    finding = hardware.check_devices(replace(settings, device="auto"))
    assert (finding.status, finding.text.splitlines()[0]) == (
        "ok",
        "NVIDIA L4 (CUDA is available)",
    )


def test_machine_without_a_gpu_computes_on_its_cores(settings, program, monkeypatch):
    no_cuda(monkeypatch, None)
    finding = hardware.check_devices(settings)
    assert (finding.status, "cores" in finding.text) == ("absent", True)


def test_backend_is_named_with_its_reason_and_an_unknown_device_is_broken(settings):
    finding = hardware.check_backend(settings)
    assert finding.status == "ok"
    assert finding.text.startswith("sdpa (torch.float32 on cpu: one call a sequence)\nfloat32 (")
    found = {f.name: f for f in run_checks(replace(settings, device="tpu", seconds=0.0))}
    assert_broken(
        found["backend"], "unknown device 'tpu'", "auto, cpu, cuda, cuda:N, mps, xpu, xpu:N"
    )


def test_gpu_that_others_hold_is_left_alone(settings):
    busy = replace(settings, busy="other jobs hold GPU-1")
    for check in (
        *(hardware.check_devices, hardware.check_backend),
        *(compute.check_kernels, compute.check_rate),
    ):
        assert check(busy).status == "warning"


# ---- what computes ------------------------------------------------------------------------------


def test_packed_model_agrees_with_one_sequence_at_a_time(settings):
    finding = compute.check_kernels(settings)
    assert finding.status == "ok"
    assert "packed against alone" in finding.text


def test_attention_across_sequences_is_found_broken(settings, monkeypatch):
    prepare = SequenceAttention.prepare

    def without_bounds(self, sequences):
        ends = sequences.cu_seqlens[[0, -1]]
        return prepare(self, replace(sequences, cu_seqlens=ends))

    monkeypatch.setattr(SequenceAttention, "prepare", without_bounds)
    assert_broken(compute.check_kernels(settings), "packed against alone", "do not embed here")


def test_rate_is_an_entry_of_the_table_of_rates(settings):
    finding = compute.check_rate(settings)
    entry = ast.literal_eval("{" + finding.text.splitlines()[0] + "}")
    ((key, rate),) = entry.items()
    assert key == "cpu/demo/float32"
    assert rate > 0
    assert type(rate) is int


def test_rate_of_converted_weights_and_of_a_model_that_is_not_here(settings, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    name = "esm2_t48_15B_UR50D"
    finding = compute.check_rate(replace(settings, model=name))
    assert (finding.status, finding.remedy) == ("absent", f"virnucpro model fetch {name}")
    weights = tmp_path / "mine.safetensors"
    fetch_model("demo", weights, tmp_path / "mine.json")
    assert compute.check_rate(replace(settings, model=str(weights))).status == "ok"
    weights.write_bytes(weights.read_bytes()[:1000])
    found = {f.name: f for f in run_checks(replace(settings, model=str(weights)))}
    assert_broken(found["rate"], "mine.safetensors", "")


def test_device_that_is_slower_than_it_was_is_warned_of(settings, monkeypatch):
    monkeypatch.setitem(rates.SHIPPED_RATES, "cpu/demo/float32", 10**12)
    finding = compute.check_rate(settings)
    assert (finding.status, "clock" in finding.remedy) == ("warning", True)


# ---- folders ------------------------------------------------------------------------------------


def test_folder_that_cannot_be_written_to_is_broken(settings, tmp_path):
    (tmp_path / "file").write_text("")
    inside = replace(settings, workdir=tmp_path / "file" / "run", cache_dir=tmp_path / "file" / "c")
    assert_broken(places.check_disk(inside), "cannot be written to", "-o")
    assert_broken(places.check_cache(inside), "cannot be written to", "cache_dir")
    as_file = replace(settings, cache_dir=tmp_path / "file")
    assert_broken(places.check_cache(as_file), "is no folder", "cache_dir")


def test_little_space_is_warned_of(settings, monkeypatch):
    assert places.check_disk(settings).status in ("ok", "warning")
    monkeypatch.setattr(places, "_LITTLE", 1e18)
    assert places.check_disk(settings).status == "warning"
    monkeypatch.setattr(places, "_LITTLE", 0.0)
    assert places.check_disk(settings).status == "ok"


def test_cache_says_what_it_has(settings):
    assert places.check_cache(settings).status == "absent"
    (settings.cache_dir / "rates").mkdir(parents=True)
    (settings.cache_dir / "rates" / "x.json").write_text("{}")
    finding = places.check_cache(settings)
    assert (finding.status, "rates 1" in finding.text) == ("ok", True)


@pytest.fixture
def locks(tmp_path, monkeypatch):
    folder = tmp_path / "locks"
    folder.mkdir()
    monkeypatch.setenv(LOCK_DIR, str(folder))
    return folder


def test_lock_folder_that_works_is_left_empty(settings, locks):
    assert places.check_locks(settings).status == "ok"
    assert os.listdir(locks) == []


def test_lock_folder_on_a_network_is_broken(settings, locks, monkeypatch):
    monkeypatch.setattr(places, "_file_system", lambda _folder: "nfs4")
    assert_broken(places.check_locks(settings), "network file system (nfs4)", LOCK_DIR)


def no_locks(*_arguments):
    raise OSError(37, "No locks available")


@pytest.mark.parametrize(
    "flock", [no_locks, lambda *_arguments: None], ids=["fails", "lets all in"]
)
def test_lock_that_keeps_nobody_out_is_broken(flock, settings, locks, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", flock)
    assert_broken(places.check_locks(settings), "cannot be locked", LOCK_DIR)


def test_lock_folder_that_is_missing_and_a_lock_of_another_user_are_broken(
    settings, locks, monkeypatch
):
    (locks / "virnucpro-GPU-1.lock").write_text("")
    monkeypatch.setattr(os, "access", lambda *_arguments: False)
    assert_broken(places.check_locks(settings), "virnucpro-GPU-1.lock cannot be read", "chmod")
    monkeypatch.setenv(LOCK_DIR, str(locks / "none"))
    assert_broken(places.check_locks(settings), "cannot be written to: No such file", LOCK_DIR)


def test_models_on_disk_are_read_whole(settings, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    assert places.check_models(settings).status == "absent"
    folder = tmp_path / "resources" / "models"
    weights = folder / "demo-0.safetensors"
    fetch_model("demo", weights, folder / "demo-0.json")
    assert places.check_models(settings) == ok("models", f"whole: {weights}")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert_broken(places.check_models(settings), "demo-0.safetensors: ", "fetch it again")
    fetch_model("demo", weights, folder / "demo-0.json")
    published = tmp_path / "torch" / "hub" / "checkpoints" / "esm2_t6_8M_UR50D.pt"
    published.parent.mkdir(parents=True)
    published.write_bytes(b"PK\x03\x04" + bytes(100))
    finding = places.check_models(settings)
    assert_broken(finding, "esm2_t6_8M_UR50D.pt: is not a complete PyTorch file", "fetch it again")
    assert str(weights) in finding.text.splitlines()[0]


# ---- software -----------------------------------------------------------------------------------


def test_old_python_and_another_system_are_told(settings, monkeypatch):
    assert software.check_python(settings).status == "ok"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert software.check_python(settings).status == "warning"
    monkeypatch.setattr(sys, "version_info", (3, 10, 1))
    assert_broken(software.check_python(settings), "virnucpro", "3.11")


def test_old_torch_and_none_are_broken(settings, monkeypatch):
    assert software.check_torch(settings).status == "ok"
    monkeypatch.setattr(torch, "__version__", "2.9.1")
    assert_broken(software.check_torch(settings), "2.9.1", "torch>=2.10")
    monkeypatch.setitem(sys.modules, "torch", None)
    assert_broken(software.check_torch(settings), "cannot be imported", "torch>=2.10")


def test_old_snakemake_and_none_are_broken(settings, monkeypatch):
    assert software.check_snakemake(settings).status == "ok"
    monkeypatch.setattr(software.metadata, "version", lambda _name: "9.4.1")
    assert_broken(software.check_snakemake(settings), "9.4.1", "snakemake>=9.27")

    def missing(name):
        raise software.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(software.metadata, "version", missing)
    assert_broken(software.check_snakemake(settings), "not installed", "snakemake>=9.27")


def test_scheduler_without_its_plugin_is_warned_of(settings, program, monkeypatch):
    monkeypatch.setattr(software, "_plugins", lambda: {"slurm": "2.8.0"})
    assert software.check_scheduler(settings).status == "absent"
    program("sbatch", "")
    assert software.check_scheduler(settings).status == "ok"
    program("bsub", "")
    finding = software.check_scheduler(settings)
    assert finding.status == "warning"
    assert "pip install snakemake-executor-plugin-lsf;" in finding.remedy
    monkeypatch.setattr(software, "_plugins", dict)
    assert "'virnucpro[cluster]'" in software.check_scheduler(settings).remedy


def test_plugins_are_listed_with_versions(settings, tmp_path, monkeypatch):
    info = tmp_path / "snakemake_executor_plugin_moon-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Name: snakemake_executor_plugin_moon\nVersion: 1.2\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert software.check_plugins(settings) == ok("plugins", "moon 1.2")
    monkeypatch.setattr(sys, "path", [])
    assert software.check_plugins(settings).status == "absent"


# ---- all of them --------------------------------------------------------------------------------


def test_check_that_fails_itself_is_a_finding_and_the_others_go_on(settings, monkeypatch):
    def fail(_settings):
        raise KeyError("a mistake")

    monkeypatch.setattr("virnucpro.doctor.checks.CHECKS", {"first": fail, "last": CHECKS["disk"]})
    first, last = run_checks(settings)
    assert_broken(first, "KeyError: 'a mistake'", "report this")
    assert last.name == "disk"


def test_without_torch_the_other_checks_go_on(tmp_path):
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from pathlib import Path\n"
        "from virnucpro.doctor.checks import run_checks\n"
        "from virnucpro.doctor.finding import Settings\n"
        f"found = run_checks(Settings(Path({str(tmp_path)!r}), Path('c')))\n"
        "print({f.name: (f.status, f.remedy is not None) for f in found})\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    found = ast.literal_eval(done.stdout)
    assert list(found) == list(CHECKS)
    broken = {name for name, (status, has_remedy) in found.items() if status == "broken"}
    assert broken == {"torch", "devices", "backend", "kernels", "rate", "models"}
    assert all(found[name][1] for name in broken)


def test_description_has_status_name_details_and_remedy():
    from virnucpro.doctor.finding import broken

    lines = describe(broken("driver", "it is old\nvery old", "get another")).splitlines()
    assert lines[0].split(maxsplit=2) == ["broken", "driver", "it is old"]
    assert [line.strip() for line in lines[1:]] == ["very old", "-> get another"]


def doctor(tmp_path, *arguments, **environment):
    line = [sys.executable, "-m", "virnucpro", "doctor", "--no-rate", *arguments]
    return subprocess.run(
        line,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"TORCH_HOME": str(tmp_path), "HF_HOME": str(tmp_path)} | environment,
        timeout=120,
    )


def test_command_ends_with_1_only_where_something_is_broken(tmp_path):
    done = doctor(tmp_path, "--device", "cpu")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "rate" not in done.stdout.split()
    done = doctor(tmp_path, "--device", "cpu", "--json", **{LOCK_DIR: str(tmp_path / "none")})
    assert done.returncode == 1
    found = {each["name"]: each for each in json.loads(done.stdout)}
    assert found["locks"]["status"] == "broken"
    assert [name for name, each in found.items() if each["status"] == "broken"] == ["locks"]


def test_command_does_not_wait_for_a_gpu_that_a_job_holds(tmp_path, program):
    program("nvidia-smi", "echo 'GPU 0: imaginary (UUID: GPU-0123)'")
    with (tmp_path / "virnucpro-GPU-0123.lock").open("w") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        done = doctor(tmp_path, **{LOCK_DIR: str(tmp_path)})
    assert "other jobs hold GPU-0123 (imaginary)" in done.stdout
    assert "not tried: no GPU is free" in done.stdout
