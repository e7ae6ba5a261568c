"""The GPUs that are visible to this process, as their makers' programs tell; torch is not asked.

So they are known before torch is imported, and where torch cannot use them. AMD's part was tried
with programs that print what AMD's documents show, not on a card of AMD.
"""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

__all__ = ["Device", "driver_version", "visible_devices"]

logger = logging.getLogger(__name__)

CUDA, ROCR, HIP = "CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"

_GPU = re.compile(r"GPU \d+: (.*) \(UUID: (\S+)\)")
_MIG = re.compile(r"\s+MIG (\S+)\s+Device\s+\d+: \(UUID: (\S+)\)")
_ROCM_SMI = ("rocm-smi", "--showuniqueid", "--showproductname", "--json")
_AMD_SMI = ("amd-smi", "static", "--asic", "--json")
_ANSWER_SECONDS = 60.0  # nvidia-smi wakes up sleeping devices, one after the other


@dataclass(frozen=True)
class Device:
    """A device that is visible to this process.

    Attributes:
        uuid: ``GPU-...`` or ``MIG-...``; its number where nothing tells more.
        name: as its maker calls it; empty where it is not known.
        amd: whether it is AMD's.
    """

    uuid: str
    name: str = ""
    amd: bool = False

    def __str__(self) -> str:
        return f"{self.uuid} ({self.name})" if self.name else self.uuid

    @property
    def alone(self) -> dict[str, str]:
        """The environment in which a process sees this device and no other."""
        if not self.amd:
            return {CUDA: self.uuid}
        # ROCR's is applied first; HIP's counts among those that it leaves, and overrules CUDA's.
        return {ROCR: self.uuid, HIP: "0"}


def visible_devices() -> list[Device]:
    """Return the devices that CUDA or ROCm would show to this process, without asking them.

    ``CUDA_VISIBLE_DEVICES``, ``ROCR_VISIBLE_DEVICES`` and ``HIP_VISIBLE_DEVICES`` may hold UUIDs,
    the beginnings of UUIDs, and numbers, which count in the order of nvidia-smi, rocm-smi or
    amd-smi, as those of schedulers do. As in CUDA, an entry that is no device ends the list.
    """
    cuda, rocr, hip = (os.environ.get(name) for name in (CUDA, ROCR, HIP))
    if _hides_all(cuda) and not hip:
        return []
    if nvidia := _nvidia_devices():
        return _chosen(cuda, nvidia)
    amd = _amd_devices()
    if not amd and rocr is None and hip is None:
        return _chosen(cuda, [])
    shown = _chosen(rocr, [[device] for device in amd])
    if rocr is not None and not shown:
        return []
    chosen = _chosen(hip or cuda, [[device] for device in shown])
    return [replace(device, amd=True) for device in chosen]


def driver_version() -> str | None:
    """Return the version of NVIDIA's driver, such as ``550.54.15``; None where it is not known."""
    answer = _answer("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    found = re.match(r"\d+\.\d[\d.]*", answer or "")
    return found[0] if found else None


def _hides_all(chosen: str | None) -> bool:
    return chosen is not None and not _names_a_device(chosen.partition(",")[0].strip())


def _names_a_device(entry: str) -> bool:
    return entry.isdecimal() or entry.startswith(("GPU-", "MIG-"))


def _chosen(variable: str | None, listed: Sequence[list[Device]]) -> list[Device]:
    """Return what a variable shows of the listed devices; all of them where it is not set."""
    if variable is None:
        return [device for devices in listed for device in devices]
    found: list[Device] = []
    for entry in map(str.strip, variable.split(",")):
        devices = _resolve(entry, listed)
        if not devices:
            break
        found += [device for device in devices if device not in found]
    return found


def _resolve(entry: str, listed: Sequence[list[Device]]) -> list[Device]:
    """Return the devices that an entry of a variable means; none for no device."""
    if not _names_a_device(entry):
        return []
    if entry.isdecimal():
        if listed:
            return listed[int(entry)] if int(entry) < len(listed) else []
        return [Device(entry)]
    known = [device for devices in listed for device in devices if device.uuid.startswith(entry)]
    return known[:1] or [Device(entry)]


def _nvidia_devices() -> list[list[Device]]:
    """Return, for each GPU of ``nvidia-smi -L``, itself or the MIG devices that it is divided into.

    Without nvidia-smi nothing is known: an empty list.
    """
    listing = _answer("nvidia-smi", "-L")
    if listing is None and Path("/dev/nvidiactl").exists():
        logger.warning("nvidia-smi gives no answer: the GPU is used without a lock")
    gpus: list[list[Device]] = []
    names: list[str] = []
    for line in (listing or "").splitlines():
        if found := _GPU.match(line):
            names.append(found[1])
            gpus.append([Device(found[2], found[1])])
        elif (found := _MIG.match(line)) and gpus:
            part = Device(found[2], f"{names[-1]} MIG {found[1]}")
            # A divided GPU cannot be used as a whole.
            gpus[-1] = [device for device in gpus[-1] if device.uuid.startswith("MIG-")] + [part]
    return gpus


def _amd_devices() -> list[Device]:
    """Return the GPUs of rocm-smi, or of amd-smi where there is no rocm-smi; none without both."""
    answer = _json(_ROCM_SMI)
    cards = answer if isinstance(answer, dict) else {}
    found = []
    for name in (name for name in cards if re.fullmatch(r"card\d+", name)):
        facts = {key.lower(): str(value) for key, value in cards[name].items()}
        found.append((int(name[4:]), facts.get("unique id", ""), facts.get("card series", "")))
    if not found:
        answer = _json(_AMD_SMI) or []
        for gpu in answer.get("gpu_data", []) if isinstance(answer, dict) else answer:
            chip = gpu.get("asic", {})
            found.append((gpu["gpu"], chip.get("asic_serial", ""), chip.get("market_name", "")))
    return [_amd_device(*facts) for facts in sorted(found)]


def _amd_device(number: int, serial: str, name: str) -> Device:
    """Name a GPU as ROCR_VISIBLE_DEVICES does: by its serial number, else by its place."""
    found = re.fullmatch(r"0x0*([1-9a-fA-F][0-9a-fA-F]*)", serial)
    uuid = f"GPU-{found[1].lower():0>16}" if found else str(number)
    return Device(uuid, "" if name == "N/A" else name, amd=True)


def _json(command: Sequence[str]) -> Any:
    """Run a program that prints JSON, perhaps below warnings; None where it gives none."""
    answer = _answer(*command) or ""
    start = re.search(r"^[\[{]", answer, re.MULTILINE)
    try:
        return json.loads(answer[start.start() :]) if start else None
    except json.JSONDecodeError:
        return None


def _answer(*command: str) -> str | None:
    """Return what a program prints; None where there is no such program or it does not end."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_ANSWER_SECONDS, check=False
        )
    except (FileNotFoundError, PermissionError):
        return None
    except subprocess.TimeoutExpired:
        logger.warning("%s gave no answer in %.0f s", " ".join(command), _ANSWER_SECONDS)
        return None
    return done.stdout
