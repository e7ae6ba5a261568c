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
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from virnucpro.errors import VirnucproError
from virnucpro.model.visible import Device, visible_devices

__all__ = ["Claim", "claim_device", "claimed", "lock_folder"]

logger = logging.getLogger(__name__)

LOCK_DIR = "VIRNUCPRO_LOCK_DIR"
# Neither $TMPDIR nor $XDG_RUNTIME_DIR: those differ between jobs and users, who must meet.
_DEFAULT_DIR = "/tmp"  # noqa: S108

_POLL_SECONDS = 0.2
_REMIND_SECONDS = 600.0


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
    """Return the device that this process holds, or None."""
    return _claim


def claim_device(device: str, *, wait: bool = True) -> str:
    """Take one of the visible devices for this process alone, and hide the others from it.

    Has to be called before CUDA or ROCm is used: it sets the variables of `Device.alone`. Waits for
    as long as others hold all devices in question. A second call in one process keeps the first
    one's device.

    Args:
        device: ``auto`` or ``cuda`` for any visible device, ``cuda:N`` for the N-th of them; with
            ``cpu``, ``mps`` and ``xpu`` nothing happens, nor where no device is visible.
        wait: where others hold all devices in question; else that is an error.

    Returns:
        The device to ask torch for: ``cuda:0`` where ``cuda:N`` was taken, else what was given.

    Raises:
        VirnucproError: the lock file cannot be made or opened, or others hold all devices and
            `wait` is false.
    """
    global _claim
    kind, _, number = device.partition(":")
    if device not in ("auto", "cuda") and not (kind == "cuda" and number.isdecimal()):
        return device
    if _claim is None:
        devices = visible_devices()
        if number:  # beyond the visible ones: torch's own check says so
            devices = devices[int(number) : int(number) + 1]
        if not devices:
            return device
        _claim = _wait_for_any(devices, wait)
        os.environ.update(_claim.device.alone)
        logger.info("GPU: %s", _claim)
    return "cuda:0" if number else device


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
