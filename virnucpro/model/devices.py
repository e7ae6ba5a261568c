"""Which device and which number format to compute in, each with the reason for the choice."""

from __future__ import annotations

import resource

import torch

from virnucpro.errors import InputError

__all__ = [
    "DTYPES",
    "device_name",
    "dtype_name",
    "peak_memory_bytes",
    "select_device",
    "select_dtype",
]

DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float8": torch.float8_e4m3fn,
}
_FLOAT8_CAPABILITY = (8, 9)


def select_device(name: str) -> tuple[torch.device, str]:
    """Choose the device to compute on, and make it the current one.

    Streams, graphs and Triton's kernels work on the current device, whatever their tensors are on.

    Args:
        name: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Returns:
        The device and the reason. Only ``auto`` ever falls back to the CPU.

    Raises:
        InputError: the device was asked for and is not there, or is not a device.
    """
    if name == "cpu":
        return torch.device("cpu"), "asked for"
    available = torch.cuda.is_available()
    if name == "auto":
        if available:
            return _current(0), "CUDA is available"
        return torch.device("cpu"), "CUDA is not available"
    kind, _, number = name.partition(":")
    if kind != "cuda" or (number and not number.isdigit()):
        raise InputError(f"unknown device {name!r}", hint="auto, cpu, cuda or cuda:N")
    if not available:
        raise InputError(
            f"device {name!r} was asked for, but CUDA is not available",
            hint="install a CUDA build of torch and check `nvidia-smi`, or use `device: auto`",
        )
    index = int(number or 0)
    if index >= torch.cuda.device_count():
        raise InputError(
            f"device {name!r} is not there: {torch.cuda.device_count()} CUDA device(s) visible",
            hint="check CUDA_VISIBLE_DEVICES; devices are counted from 0 among the visible ones",
        )
    return _current(index), "asked for"


def _current(index: int) -> torch.device:
    """Make a CUDA device the current one."""
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def select_dtype(name: str, device: torch.device) -> tuple[torch.dtype, str]:
    """Choose the number format to compute in.

    Args:
        name: ``auto``, ``float32``, ``float16``, ``bfloat16`` or ``float8``.
        device: where the model runs.

    Returns:
        The dtype and the reason.

    Raises:
        InputError: the name is unknown, or the device has no such arithmetic.
    """
    if name == "auto":
        if device.type == "cuda":
            return torch.float16, "ESM-2 was trained in float16, closest to float32 on a GPU"
        return torch.float32, "exact, and the only format every processor is fast at"
    if name not in DTYPES:
        raise InputError(f"unknown dtype {name!r}", hint=f"auto, {', '.join(DTYPES)}")
    if name == "float8" and not (
        device.type == "cuda" and torch.cuda.get_device_capability(device) >= _FLOAT8_CAPABILITY
    ):
        raise InputError(
            f"dtype float8 cannot run on {device_name(device)}",
            hint="it needs a GPU of compute capability 8.9 or newer, such as an H100 or an L40S",
        )
    return DTYPES[name], "asked for"


def dtype_name(dtype: torch.dtype) -> str:
    """Name a number format as the configuration and receipts do."""
    return next(name for name, known in DTYPES.items() if known == dtype)


def device_name(device: torch.device) -> str:
    """Name the device as its maker does (a CPU is just ``cpu``)."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def peak_memory_bytes() -> int:
    """Give the most memory that was in use so far.

    On a CUDA device what this process had allocated there; without one, the process's resident
    memory.
    """
    allocated = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return allocated or 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
