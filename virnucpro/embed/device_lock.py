"""One job a GPU: a lock for each device of this machine, taken before torch is imported.

Snakemake's ``--resources gpu=2`` limits the number of jobs, not the device that each of them takes,
and a scheduler that hands out whole machines hands out all of their devices. So a job takes one of
the devices that are visible to it, waits where others have them all, and hides the rest from
itself. The lock is a `flock(2)` on a file named by the device's UUID, so that two jobs that number
the devices differently still meet; it holds for the life of the process, and the system frees it
however that ends.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from virnucpro.errors import VirnucproError

__all__ = ["Claim", "Device", "claim_device", "claimed", "lock_folder", "visible_devices"]

logger = logging.getLogger(__name__)

VISIBLE = "CUDA_VISIBLE_DEVICES"
LOCK_DIR = "VIRNUCPRO_LOCK_DIR"
# Neither $TMPDIR nor $XDG_RUNTIME_DIR: those differ between jobs and users, who must meet.
_DEFAULT_DIR = "/tmp"  # noqa: S108

_GPU = re.compile(r"GPU \d+: (.*) \(UUID: (\S+)\)")
_MIG = re.compile(r"\s+MIG (\S+)\s+Device\s+\d+: \(UUID: (\S+)\)")
_POLL_SECONDS = 0.2
_REMIND_SECONDS = 600.0
_LIST_SECONDS = 60.0  # nvidia-smi wakes up sleeping devices, one after the other


@dataclass(frozen=True)
class Device:
    """A device that is visible to this process.

    Attributes:
        uuid: ``GPU-...`` or ``MIG-...``; its number where nothing tells more.
        name: as its maker calls it; empty where it is not known.
    """

    uuid: str
    name: str = ""

    def __str__(self) -> str:
        return f"{self.uuid} ({self.name})" if self.name else self.uuid


@dataclass(frozen=True)
class Claim:
    """A device that this process holds until it ends.

    Attributes:
        device: the device.
        waited: seconds until it was free.
        descriptor: the open lock file; the lock lives as long as it.
    """

    device: Device
    waited: float
    descriptor: int

    def __str__(self) -> str:
        return f"{self.device}, waited {self.waited:.1f} s"


_claim: Claim | None = None


def claimed() -> Claim | None:
    """Give the device that this process holds, or None."""
    return _claim


def claim_device(asked: str, *, wait: bool = True) -> str:
    """Take one of the visible devices for this process alone, and hide the others from it.

    Has to be called before CUDA is used: it sets ``CUDA_VISIBLE_DEVICES``. Waits for as long as
    others hold all devices in question. A second call in one process keeps the first one's device.

    Args:
        asked: ``auto`` or ``cuda`` for any visible device, ``cuda:N`` for the N-th of them; with
            ``cpu`` nothing happens, nor where no device is visible.
        wait: where others hold all devices in question; else that is an error.

    Returns:
        The device to ask torch for: ``cuda:0`` where ``cuda:N`` was taken, else what was asked.

    Raises:
        VirnucproError: the lock file cannot be made or opened, or others hold all devices and
            `wait` is false.
    """
    global _claim
    kind, _, number = asked.partition(":")
    if asked not in ("auto", "cuda") and not (kind == "cuda" and number.isdecimal()):
        return asked
    if _claim is None:
        devices = visible_devices()
        if number:  # beyond the visible ones: torch's own check says so
            devices = devices[int(number) : int(number) + 1]
        if not devices:
            return asked
        _claim = _wait_for_any(devices, wait)
        os.environ[VISIBLE] = _claim.device.uuid
        logger.info("GPU: %s", _claim)
    return "cuda:0" if number else asked


def visible_devices() -> list[Device]:
    """Give the devices that CUDA would show to this process, without asking CUDA.

    ``CUDA_VISIBLE_DEVICES`` may hold UUIDs, the beginnings of UUIDs, and numbers, which count in
    the order of nvidia-smi, as those of schedulers do. As in CUDA, an entry that is no device ends
    the list.
    """
    chosen = os.environ.get(VISIBLE)
    if chosen is not None and not _names_a_device(chosen.partition(",")[0].strip()):
        return []
    listed = _listed_devices()
    if chosen is None:
        return [device for devices in listed for device in devices]
    found: list[Device] = []
    for entry in map(str.strip, chosen.split(",")):
        devices = _resolve(entry, listed)
        if not devices:
            break
        found += [device for device in devices if device not in found]
    return found


def _names_a_device(entry: str) -> bool:
    return entry.isdecimal() or entry.startswith(("GPU-", "MIG-"))


def _resolve(entry: str, listed: Sequence[list[Device]]) -> list[Device]:
    """Give the devices that an entry of ``CUDA_VISIBLE_DEVICES`` means; none for no device."""
    if not _names_a_device(entry):
        return []
    if entry.isdecimal():
        if listed:
            return listed[int(entry)] if int(entry) < len(listed) else []
        return [Device(entry)]
    known = [device for devices in listed for device in devices if device.uuid.startswith(entry)]
    return known[:1] or [Device(entry)]


def _listed_devices() -> list[list[Device]]:
    """Give, for each GPU of ``nvidia-smi -L``, itself or the MIG devices that it is divided into.

    Without nvidia-smi nothing is known: an empty list.
    """
    try:
        listing = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, timeout=_LIST_SECONDS, check=False
        )
    except (FileNotFoundError, PermissionError):
        if Path("/dev/nvidiactl").exists():
            logger.warning("nvidia-smi is not on the PATH: the GPU is used without a lock")
        return []
    except subprocess.TimeoutExpired:
        logger.warning("nvidia-smi -L gave no answer in %.0f s: no lock is taken", _LIST_SECONDS)
        return []
    gpus: list[list[Device]] = []
    names: list[str] = []
    for line in listing.stdout.splitlines():
        if found := _GPU.match(line):
            names.append(found[1])
            gpus.append([Device(found[2], found[1])])
        elif (found := _MIG.match(line)) and gpus:
            part = Device(found[2], f"{names[-1]} MIG {found[1]}")
            # A divided GPU cannot be used as a whole.
            gpus[-1] = [device for device in gpus[-1] if device.uuid.startswith("MIG-")] + [part]
    return gpus


def _wait_for_any(devices: Sequence[Device], wait: bool) -> Claim:
    """Lock the first device that is free."""
    start = time.monotonic()
    remind = 0.0
    while True:
        for device in devices:
            descriptor = _try_lock(device)
            if descriptor is not None:
                return Claim(device, time.monotonic() - start, descriptor)
        held = ", ".join(map(str, devices))
        if not wait:
            raise VirnucproError(f"other jobs hold {held}", hint="try again when they are done")
        waited = time.monotonic() - start
        if waited >= remind:
            remind = waited + _REMIND_SECONDS
            logger.info("waiting for a GPU: other jobs hold %s (for %.0f s)", held, waited)
        time.sleep(_POLL_SECONDS)


def lock_folder() -> Path:
    """Return the folder of the lock files, which all jobs of this machine share."""
    return Path(os.environ.get(LOCK_DIR) or _DEFAULT_DIR)


def _try_lock(device: Device) -> int | None:
    """Lock a device; give the lock's file descriptor, or None where another process has it."""
    path = lock_folder() / f"virnucpro-{re.sub('[^A-Za-z0-9-]', '_', device.uuid)}.lock"
    try:
        descriptor = _open(path)
    except OSError as error:
        raise VirnucproError(
            f"cannot use the lock file of GPU {device}: {error.strerror}",
            path=path,
            hint=f"set {LOCK_DIR} to a folder on a disk of this machine that all jobs can write to",
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _open(path: Path) -> int:
    """Open a lock file that any user of this machine may have made, or make it for all of them.

    It is opened for reading, which is all that flock needs, so that nobody has to write into
    another user's file; and never created through a link.
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
    while True:
        try:
            return os.open(path, flags)
        except FileNotFoundError:
            pass
        # Readable by all from the first moment on, whatever the user's umask is.
        umask = os.umask(0o022)
        try:
            return os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            continue
        finally:
            os.umask(umask)
