"""Checks of the driver, the devices, and the backend that would be chosen."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from virnucpro.doctor.finding import Finding, Settings, absent, broken, ok, warning
from virnucpro.errors import InputError, VirnucproError

__all__ = ["check_backend", "check_devices", "check_driver"]

_CONTROL = Path("/dev/nvidiactl")  # is there wherever the driver is loaded
_QUERY = ("name", "compute_cap", "memory.total", "driver_version")
_QUERY_SECONDS = 60.0  # nvidia-smi wakes up sleeping devices, one after the other


@dataclass(frozen=True)
class _Gpu:
    """A GPU as nvidia-smi tells of it."""

    name: str
    capability: str
    memory: str  # with its unit
    driver: str

    def __str__(self) -> str:
        return f"{self.name}, compute capability {self.capability}, {self.memory}"


def check_driver(_settings: Settings) -> Finding:
    """Find NVIDIA's driver, by nvidia-smi."""
    try:
        gpus = _list_gpus()
    except FileNotFoundError:
        if _CONTROL.exists():
            return warning(
                "driver",
                f"nvidia-smi is not on the PATH, though {_CONTROL} is there: GPUs are used without "
                "a lock",
                "put nvidia-smi on the PATH; in a container, start it with the GPU's utilities "
                "(--nv, --gpus all)",
            )
        return absent("driver", "no nvidia-smi: there is no NVIDIA driver on this machine")
    except (OSError, VirnucproError, subprocess.TimeoutExpired) as error:
        return broken(
            "driver",
            f"nvidia-smi failed: {error}",
            "make `nvidia-smi` work first: after an update of the driver, reboot the machine; on a "
            "cluster, ask for a node with a GPU",
        )
    if not gpus:
        return warning(
            "driver",
            "nvidia-smi lists no GPU",
            "ask the scheduler for a node with a GPU, or the machine's administrators",
        )
    return ok("driver", f"{gpus[0].driver}, {len(gpus)} GPU(s)")


def check_devices(settings: Settings) -> Finding:
    """Find the GPUs, and whether torch can use the one that a run would take."""
    from virnucpro.model.devices import device_name, select_device

    gpus = _gpus_or_none()
    listed = "".join(f"\n{gpu}" for gpu in gpus)
    if settings.busy is not None:
        return warning("devices", f"{settings.busy}{listed}", "run doctor again when a GPU is free")
    try:
        device, reason = select_device(settings.device)
    except InputError as error:
        return broken("devices", f"{error.message}{listed}", error.hint or "see docs/cards.md")
    if device.type != "cpu":
        return ok("devices", f"{device_name(device)} ({reason}){listed}")
    if gpus and settings.visible is not None:
        return warning(
            "devices",
            f"CUDA_VISIBLE_DEVICES is {settings.visible!r}, and torch sees no GPU{listed}",
            "unset CUDA_VISIBLE_DEVICES, or give it the number or the UUID of a GPU",
        )
    cores = len(os.sched_getaffinity(0))
    return absent("devices", f"{reason}: runs compute on the CPU, which has {cores} cores")


def check_backend(settings: Settings) -> Finding:
    """Find the device, the dtype and the backend that a run would choose, and why."""
    from virnucpro.model.backends import select_backend
    from virnucpro.model.config import KNOWN_MODELS
    from virnucpro.model.devices import device_name, dtype_name, select_device, select_dtype

    if settings.busy is not None:
        return warning("backend", "not looked at: no GPU is free", "run doctor again when one is")
    device, why_device = select_device(settings.device)
    dtype, why_dtype = select_dtype("auto", device)
    config = KNOWN_MODELS.get(settings.model, KNOWN_MODELS["demo"])
    backend = select_backend("auto", device, dtype, config)
    text = (
        f"{backend.name} ({backend.reason})\n{dtype_name(dtype)} ({why_dtype})\n"
        f"{device_name(device)} ({why_device})"
    )
    if device.type == "cuda" and backend.name != "tiles":
        return warning(
            "backend",
            text,
            "`pip install triton` in the version that torch asks for, and use a GPU of "
            "compute capability 8.0 or newer (A100, L4, H100, RTX 30 and later)",
        )
    return ok("backend", text)


def _list_gpus() -> list[_Gpu]:
    """Return the GPUs that nvidia-smi lists.

    Raises:
        FileNotFoundError: there is no nvidia-smi.
        subprocess.TimeoutExpired: it gave no answer.
        VirnucproError: it failed, or said something else.
    """
    done = subprocess.run(
        ["nvidia-smi", f"--query-gpu={','.join(_QUERY)}", "--format=csv,noheader"],
        capture_output=True,
        text=True,
        timeout=_QUERY_SECONDS,
        check=False,
    )
    said = (done.stdout.strip() or done.stderr.strip()).splitlines()
    rows = [[cell.strip() for cell in line.split(",")] for line in said]
    if done.returncode == 0 and all(len(row) == len(_QUERY) for row in rows):
        return [_Gpu(*row) for row in rows]
    if said == ["No devices were found"]:
        return []
    raise VirnucproError(said[0] if said else f"exit status {done.returncode}")


def _gpus_or_none() -> list[_Gpu]:
    """Return the GPUs that nvidia-smi lists; none where it fails, of which `check_driver` tells."""
    try:
        return _list_gpus()
    except (OSError, VirnucproError, subprocess.TimeoutExpired):
        return []
