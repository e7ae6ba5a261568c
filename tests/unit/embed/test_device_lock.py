"""Imaginary devices: a fake nvidia-smi on the PATH, and processes that hold what they claim."""

import json
import os
import select
import signal
import stat
import subprocess
import sys
import textwrap
import time

import pytest

from virnucpro.embed import device_lock
from virnucpro.embed.device_lock import Claim, claim_device
from virnucpro.errors import VirnucproError
from virnucpro.model.visible import Device

GPU_0, GPU_1 = (
    "GPU-aaaaaaaa-0000-4000-8000-000000000000",
    "GPU-bbbbbbbb-0000-4000-8000-000000000001",
)
TWO = f"""\
GPU 0: NVIDIA H100 80GB HBM3 (UUID: {GPU_0})
GPU 1: NVIDIA H100 80GB HBM3 (UUID: {GPU_1})
"""
VARIABLES = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")

# Prints what it got, and holds it until its standard input closes.
HOLDER = """
import logging, os, sys
logging.basicConfig(level=logging.INFO, stream=sys.stderr)
from virnucpro.embed.device_lock import claim_device, claimed
device = claim_device(sys.argv[1])
assert "torch" not in sys.modules
print(device, os.environ.get("CUDA_VISIBLE_DEVICES"), claimed(), flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def _nothing_claimed(monkeypatch, tmp_path):
    """Each test has its own lock folder, no visible device, and a process that holds none."""
    (tmp_path / "locks").mkdir()
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("VIRNUCPRO_LOCK_DIR", str(tmp_path / "locks"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    for name in VARIABLES:
        monkeypatch.setenv(name, "")  # so that what a claim sets is taken back
        monkeypatch.delenv(name)
    monkeypatch.setattr(device_lock, "_claim", None)


@pytest.fixture
def nvidia_smi(tmp_path):
    """Give a function that puts an nvidia-smi with this listing on the PATH."""

    def install(listing):
        program = tmp_path / "bin" / "nvidia-smi"
        program.write_text(f"#!/bin/sh\n/bin/cat <<'END'\n{listing}END\n")
        program.chmod(0o755)

    return install


@pytest.fixture
def start(monkeypatch):
    """Give a function that starts a process which claims a device and holds it."""
    running = []

    def start(asked="auto", **environment):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, asked],
            env={**os.environ, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        running.append(process)
        return process

    yield start
    for process in running:
        process.kill()
        process.communicate()


def got(process):
    """What a holder has: the name for torch, CUDA_VISIBLE_DEVICES, and the claim in words."""
    device, visible, words = process.stdout.readline().split(maxsplit=2)
    return device, visible, words.strip()


def test_no_device_no_claim(monkeypatch):
    assert [claim_device(asked) for asked in ("auto", "cuda", "cuda:1", "cpu")] == [
        *("auto", "cuda", "cuda:1", "cpu")
    ]
    assert device_lock.claimed() is None
    assert "CUDA_VISIBLE_DEVICES" not in os.environ


def test_the_cpu_takes_no_device(nvidia_smi, tmp_path):
    nvidia_smi(TWO)
    assert claim_device("cpu") == "cpu"
    assert claim_device("quantum") == "quantum"
    assert os.listdir(tmp_path / "locks") == []


def test_two_jobs_take_two_devices_and_see_no_other(start, nvidia_smi):
    nvidia_smi(TWO)
    first = got(start())
    second = got(start())
    assert [first[:2], second[:2]] == [("auto", GPU_0), ("auto", GPU_1)]
    assert first[2].startswith(f"{GPU_0} (NVIDIA H100 80GB HBM3), waited 0.")


def test_a_third_job_waits_until_kill_9_frees_a_device(start, nvidia_smi):
    nvidia_smi(TWO)
    holders = [start() for _ in range(2)]
    taken = {got(holder)[1] for holder in holders}
    assert taken == {GPU_0, GPU_1}
    third = start()
    assert "waiting for a GPU" in third.stderr.readline()
    time.sleep(0.5)
    assert third.poll() is None
    killed = time.monotonic()
    holders[1].send_signal(signal.SIGKILL)
    _, visible, words = got(third)
    assert time.monotonic() - killed < 3
    assert visible in taken
    assert float(words.rsplit(" ", 2)[1]) >= 0.5


def test_eight_jobs_on_three_devices_never_share_one(start, nvidia_smi):
    nvidia_smi(TWO + "GPU 2: NVIDIA L40S (UUID: GPU-cccccccc-0000-4000-8000-000000000002)\n")
    waiting = [start() for _ in range(8)]
    held = {}
    while waiting or held:
        deadline = time.monotonic() + 60
        while waiting and len(held) < 3:
            assert time.monotonic() < deadline, "a device is free and no job gets it"
            for job in filter(_has_written, list(waiting)):
                device = got(job)[1]
                assert device not in held, "two jobs hold one device"
                held[device] = job
                waiting.remove(job)
        assert not any(map(_has_written, waiting)), "more jobs than devices"
        while held:
            _, job = held.popitem()
            job.kill()
            job.wait()


def _has_written(process):
    return bool(select.select([process.stdout], [], [], 0.05)[0])


def test_two_numberings_of_one_device_meet(start, nvidia_smi):
    nvidia_smi(TWO)
    assert got(start(CUDA_VISIBLE_DEVICES="1"))[1] == GPU_1
    other = start(CUDA_VISIBLE_DEVICES=GPU_1)
    assert f"other jobs hold {GPU_1}" in other.stderr.readline()


def test_a_numbered_device_is_waited_for_though_others_are_free(start, nvidia_smi):
    nvidia_smi(TWO)
    first = start("cuda:1")
    assert got(first)[:2] == ("cuda:0", GPU_1)  # the only one that is left to see
    second = start("cuda:1")
    assert "waiting" in second.stderr.readline()
    first.kill()
    assert got(second)[:2] == ("cuda:0", GPU_1)


def test_a_gpu_of_amd_is_locked_by_its_serial_number(tmp_path, monkeypatch):
    program = tmp_path / "bin" / "rocm-smi"
    cards = {f"card{i}": {"Unique ID": f"0x{i + 1}a2b", "Card Series": "MI250X"} for i in range(2)}
    program.write_text(f"#!/bin/sh\necho '{json.dumps(cards)}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("ROCR_VISIBLE_DEVICES", "1")
    claim_device("auto")
    os.close(device_lock.claimed().descriptor)
    assert os.listdir(tmp_path / "locks") == ["virnucpro-GPU-0000000000002a2b.lock"]
    set_now = [os.environ.get(name) for name in VARIABLES]
    assert set_now == [None, "GPU-0000000000002a2b", "0"]


@pytest.mark.parametrize("asked", ["mps", "xpu", "xpu:1"])
def test_devices_that_others_make_are_not_locked(asked, nvidia_smi, tmp_path):
    nvidia_smi(TWO)
    assert claim_device(asked) == asked
    assert os.listdir(tmp_path / "locks") == []


def test_a_number_beyond_the_visible_devices_is_left_to_torch_to_refuse(nvidia_smi):
    nvidia_smi(TWO)
    assert claim_device("cuda:2") == "cuda:2"
    assert device_lock.claimed() is None


def test_a_process_keeps_the_device_that_it_has(nvidia_smi):
    nvidia_smi(TWO)
    claim_device("auto")
    first = device_lock.claimed()
    assert claim_device("auto") == "auto"
    assert device_lock.claimed() is first
    os.close(first.descriptor)


def test_a_child_of_the_holder_does_not_keep_the_device(nvidia_smi, start):
    nvidia_smi(TWO.splitlines(keepends=True)[0])
    claim_device("auto")
    child = subprocess.Popen(["/bin/sleep", "60"])
    os.close(device_lock.claimed().descriptor)
    try:
        assert got(start(CUDA_VISIBLE_DEVICES="0"))[1] == GPU_0
    finally:
        child.kill()
        child.wait()


def test_a_lock_file_is_readable_for_other_users_whatever_the_umask(nvidia_smi, tmp_path):
    nvidia_smi(TWO)
    umask = os.umask(0o077)
    try:
        claim_device("auto")
    finally:
        os.umask(umask)
        os.close(device_lock.claimed().descriptor)
    (lock,) = (tmp_path / "locks").iterdir()
    assert lock.name == f"virnucpro-{GPU_0}.lock"
    assert stat.S_IMODE(lock.stat().st_mode) == 0o644


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a second user")
def test_two_users_of_one_machine_meet(nvidia_smi, tmp_path):
    """The second user may only read the first one's file, as in /tmp."""
    nvidia_smi(TWO.splitlines(keepends=True)[0])
    locks = tmp_path / "locks"
    locks.chmod(0o1777)
    claim_device("auto")
    script = f"""
    import os
    from virnucpro.embed.device_lock import _try_lock
    from virnucpro.model.visible import Device
    os.setuid(65534)
    assert _try_lock(Device({GPU_0!r})) is None
    assert _try_lock(Device({GPU_1!r})) is not None
    """
    for folder in (tmp_path, tmp_path.parent, tmp_path.parent.parent):  # pytest's own
        folder.chmod(0o711)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True
    )
    os.close(device_lock.claimed().descriptor)
    assert done.returncode == 0, done.stderr


def test_a_link_in_the_place_of_a_lock_is_refused(nvidia_smi, tmp_path):
    nvidia_smi(TWO)
    (tmp_path / "locks" / f"virnucpro-{GPU_0}.lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(VirnucproError, match="VIRNUCPRO_LOCK_DIR"):
        claim_device("auto")
    assert not (tmp_path / "elsewhere").exists()


def test_a_missing_lock_folder_is_a_sentence(nvidia_smi, monkeypatch, tmp_path):
    nvidia_smi(TWO)
    monkeypatch.setenv("VIRNUCPRO_LOCK_DIR", str(tmp_path / "nowhere"))
    with pytest.raises(VirnucproError, match=r"lock file of GPU GPU-aaaa.*No such file"):
        claim_device("auto")


def test_an_id_is_no_path(monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-GPU-x/7/0")
    claim_device("auto")
    os.close(device_lock.claimed().descriptor)
    assert os.listdir(tmp_path / "locks") == ["virnucpro-MIG-GPU-x_7_0.lock"]


def test_a_claim_in_words():
    assert str(Claim(Device("GPU-1", "H100"), 1.26, 3)) == "GPU-1 (H100), waited 1.3 s"
    assert str(Device("7")) == "7"
