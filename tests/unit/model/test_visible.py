"""Which GPUs a process may use: imaginary ones, of programs that print what the real ones print."""

import json

import pytest

from virnucpro.model import visible
from virnucpro.model.visible import Device, driver_version, visible_devices

GPU_0, GPU_1 = (
    "GPU-aaaaaaaa-0000-4000-8000-000000000000",
    "GPU-bbbbbbbb-0000-4000-8000-000000000001",
)
MIG_A, MIG_B = (
    "MIG-cccccccc-0000-5000-8000-000000000002",
    "MIG-dddddddd-0000-5000-8000-000000000003",
)
TWO = f"""\
GPU 0: NVIDIA H100 80GB HBM3 (UUID: {GPU_0})
GPU 1: NVIDIA H100 80GB HBM3 (UUID: {GPU_1})
"""
DIVIDED = f"""\
GPU 0: NVIDIA A100-SXM4-40GB (UUID: {GPU_0})
GPU 1: NVIDIA A100-SXM4-40GB (UUID: {GPU_1})
  MIG 3g.20gb     Device  0: (UUID: {MIG_A})
  MIG 3g.20gb     Device  1: (UUID: {MIG_B})
"""
AMD_0, AMD_1 = "GPU-0f1e2d3c4b5a6978", "GPU-a1b2c3d4e5f60718"
ROCM_SMI = "WARNING: AMD GPU device(s) is/are in a low-power state.\n" + json.dumps(
    {
        "card1": {"Unique ID": "0xa1b2c3d4e5f60718", "Card Series": "AMD Instinct MI250X"},
        "card0": {"Unique ID": "0xf1e2d3c4b5a6978", "Card Series": "AMD Instinct MI250X"},
        "system": {"Driver version": "6.7.0"},
    }
)
AMD_SMI = [
    {"gpu": 0, "asic": {"market_name": "AMD Instinct MI250X", "asic_serial": "0x0F1E2D3C4B5A6978"}},
    {"gpu": 1, "asic": {"market_name": "AMD Instinct MI250X", "asic_serial": "0xA1B2C3D4E5F60718"}},
]


@pytest.fixture(autouse=True)
def program(tmp_path, monkeypatch):
    """Give a function that puts a program which prints this on a PATH that has no other."""
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)

    def install(name, printed):
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\n/bin/cat <<'END'\n{printed}\nEND\n")
        path.chmod(0o755)

    return install


def uuids(devices):
    return [device.uuid for device in devices]


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        (None, [GPU_0, GPU_1]),
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
        ("0", [GPU_0]),
        ("1,0", [GPU_1, GPU_0]),
        (" 1 , 0 ", [GPU_1, GPU_0]),
        (GPU_1, [GPU_1]),
        ("GPU-bbbb", [GPU_1]),
        ("1,7,0", [GPU_1]),
        ("1,-1,0", [GPU_1]),
        (f"0,{GPU_0}", [GPU_0]),
    ],
)
def test_visible_devices_are_those_that_cuda_would_show(chosen, expected, program, monkeypatch):
    program("nvidia-smi", TWO)
    if chosen is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
    assert uuids(visible_devices()) == expected


def test_a_divided_gpu_is_its_parts(program, monkeypatch):
    program("nvidia-smi", DIVIDED)
    assert uuids(visible_devices()) == [GPU_0, MIG_A, MIG_B]
    assert visible_devices()[1].name == "NVIDIA A100-SXM4-40GB MIG 3g.20gb"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", MIG_B)
    assert uuids(visible_devices()) == [MIG_B]


def test_without_nvidia_smi_the_given_ids_stand_for_the_devices(monkeypatch):
    assert visible_devices() == []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", f"1,{GPU_0}")
    assert uuids(visible_devices()) == ["1", GPU_0]


def test_an_nvidia_smi_that_fails_or_hangs_is_no_end(program, monkeypatch, caplog):
    program("nvidia-smi", "No devices were found\n")
    assert visible_devices() == []
    monkeypatch.setattr(visible, "_ANSWER_SECONDS", 0.01)
    program("nvidia-smi", "END\nexec /bin/sleep 5\n")
    assert visible_devices() == []
    assert "no answer" in caplog.text


@pytest.mark.parametrize(
    ("printed", "expected"),
    [("550.54.15\n550.54.15", "550.54.15"), ("580.1", "580.1"), ("No devices were found", None)],
)
def test_the_driver_is_what_nvidia_smi_says(program, printed, expected):
    assert driver_version() is None
    program("nvidia-smi", printed)
    assert driver_version() == expected


# ---- AMD's ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "printed"),
    [
        ("rocm-smi", ROCM_SMI),
        ("amd-smi", json.dumps(AMD_SMI)),
        ("amd-smi", json.dumps({"gpu_data": AMD_SMI})),
    ],
)
def test_both_programs_of_amd_give_the_same_devices(program, name, printed):
    program(name, printed)
    found = visible_devices()
    assert found == [Device(uuid, "AMD Instinct MI250X", amd=True) for uuid in (AMD_0, AMD_1)]
    assert found[1].alone == {"ROCR_VISIBLE_DEVICES": AMD_1, "HIP_VISIBLE_DEVICES": "0"}


@pytest.mark.parametrize(
    ("cuda", "rocr", "hip", "expected"),
    [
        (None, "1", None, [AMD_1]),
        (None, AMD_1, None, [AMD_1]),
        (None, None, "1,0", [AMD_1, AMD_0]),
        ("1", None, None, [AMD_1]),
        ("0", None, "1", [AMD_1]),  # HIP's goes before CUDA's
        (None, "1,0", "1", [AMD_0]),  # counts among those that ROCR's leaves
        (None, "1", "1", []),
        (None, "", None, []),
        ("", None, None, []),
        ("", None, "0", [AMD_0]),
        (None, "-1", "0", []),
    ],
)
def test_the_variables_of_rocm_one_behind_the_other(
    program, monkeypatch, cuda, rocr, hip, expected
):
    program("rocm-smi", ROCM_SMI)
    for name, value in (("CUDA", cuda), ("ROCR", rocr), ("HIP", hip)):
        if value is not None:
            monkeypatch.setenv(f"{name}_VISIBLE_DEVICES", value)
    assert uuids(visible_devices()) == expected


def test_without_a_program_of_amd_the_given_ids_stand_for_the_devices(monkeypatch):
    monkeypatch.setenv("ROCR_VISIBLE_DEVICES", "2,3")
    assert visible_devices() == [Device("2", amd=True), Device("3", amd=True)]
    monkeypatch.setenv("HIP_VISIBLE_DEVICES", "1")
    assert visible_devices() == [Device("3", amd=True)]
    monkeypatch.delenv("ROCR_VISIBLE_DEVICES")
    assert visible_devices() == [Device("1", amd=True)]


@pytest.mark.parametrize("serial", ["N/A", "", "0x0"])
def test_a_gpu_of_amd_without_a_serial_number_is_its_place(program, serial):
    cards = {f"card{i}": {"Unique ID": serial, "Card series": "N/A"} for i in (0, 1)}
    program("rocm-smi", json.dumps(cards))
    assert visible_devices() == [Device("0", amd=True), Device("1", amd=True)]


@pytest.mark.parametrize("printed", ["", "no permission", "{not json", "{}", "[]"])
def test_a_program_of_amd_that_gives_nothing_is_no_end(program, printed):
    program("rocm-smi", printed)
    program("amd-smi", printed)
    assert visible_devices() == []


def test_a_machine_with_cards_of_both_has_nvidias(program):
    program("nvidia-smi", TWO)
    program("rocm-smi", ROCM_SMI)
    assert uuids(visible_devices()) == [GPU_0, GPU_1]
