"""Which device and which number format to compute in, each with the reason for the choice."""

from __future__ import annotations

import resource
from typing import Any

import torch

from virnucpro.errors import InputError
from virnucpro.model.kernels import reference
from virnucpro.model.kernels.float8 import float8_product
from virnucpro.model.visible import Device, driver_version, visible_devices

__all__ = [
    "DTYPES",
    "device_name",
    "dtype_name",
    "peak_memory_bytes",
    "select_device",
    "select_dtype",
    "torch_build",
]

DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float8": torch.float8_e4m3fn,
}
_MODULES: dict[str, Any] = {"cuda": torch.cuda, "mps": torch.mps, "xpu": torch.xpu}
_WHEELS = "https://download.pytorch.org/whl/"


def select_device(name: str) -> tuple[torch.device, str]:
    """Choose the device to compute on, and make it the current one.

    Streams, graphs and Triton's kernels work on the current device, whatever their tensors are on.

    Args:
        name: ``auto``, ``cpu``, ``cuda``, ``cuda:N``, ``mps``, ``xpu`` or ``xpu:N``; a GPU of AMD
            is a ``cuda`` device.

    Returns:
        The device and the reason. Only ``auto`` ever falls back to the CPU, and only where no GPU
        is visible.

    Raises:
        InputError: the device was asked for and is not there, or is not a device; or a GPU is
            visible that torch cannot use.
    """
    if name == "cpu":
        return torch.device("cpu"), "asked for"
    if name == "auto" and torch.cuda.is_available():
        return _usable("cuda", 0), "CUDA is available"
    if name == "auto":
        if visible := visible_devices():
            raise _unusable(visible[0], _why_no_cuda())
        return torch.device("cpu"), "no GPU is visible"
    kind, _, number = name.partition(":")
    if kind not in _MODULES or (number and not number.isdigit()) or name.startswith("mps:"):
        raise InputError(
            f"unknown device {name!r}", hint="auto, cpu, cuda, cuda:N, mps, xpu, xpu:N"
        )
    if not _MODULES[kind].is_available():
        raise _not_available(name, kind)
    index, count = int(number or 0), _MODULES[kind].device_count()
    if index >= count:
        raise InputError(
            f"device {name!r} is not there: {count} {kind.upper()} device(s) visible",
            hint="check CUDA_VISIBLE_DEVICES; devices are counted from 0 among the visible ones",
        )
    return _usable(kind, index), "asked for"


# ---- devices that cannot be used ----------------------------------------------------------------

_CUDA_12_DRIVER, _CUDA_13_DRIVER = 525, 580  # the first ones for builds of CUDA 12 and 13
_CUDA_13_CAPABILITY = (7, 5)  # builds of CUDA 13 have no code for older cards


def _not_available(name: str, kind: str) -> InputError:
    """Say why a device that was asked for is not there."""
    if kind == "cuda" and (visible := visible_devices()):
        return _unusable(visible[0], _why_no_cuda())
    return InputError(
        f"device {name!r} was asked for, but {kind.upper()} is not available",
        hint=f"install a build of torch for {kind.upper()} and check the driver, or use "
        "`device: auto`",
    )


def _usable(kind: str, index: int) -> torch.device:
    """Make a device the current one, after a first kernel has run on it.

    A build of torch without code for the card finds the card and fails at its first kernel.
    """
    device = torch.device(kind, index)
    if kind != "mps":
        _MODULES[kind].set_device(index)
    try:
        _run_a_kernel(device)
    except torch.cuda.OutOfMemoryError:
        raise
    except RuntimeError as error:
        if kind != "cuda":
            raise InputError(f"{device} does not compute: {_first_line(error)}") from error
        capability = torch.cuda.get_device_capability(device)
        card = Device(
            str(device),
            f"{device_name(device)}, compute capability {capability[0]}.{capability[1]}",
            amd=torch.version.hip is not None,
        )
        raise _unusable(card, _first_line(error), capability) from error
    return device


def _run_a_kernel(device: torch.device) -> None:
    torch.zeros(1, device=device).add_(1).item()


def _why_no_cuda() -> str:
    """Return what torch says when it is to use CUDA."""
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (RuntimeError, AssertionError) as error:
        return _first_line(error)
    return "it finds no device"


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def _unusable(card: Device, why: str, capability: tuple[int, int] | None = None) -> InputError:
    """Name a GPU that torch cannot use, with what it takes.

    Args:
        card: the GPU.
        why: what torch says.
        capability: of the GPU, where torch knows it.
    """
    driver = None if card.amd else driver_version()
    known = "" if card.amd else f", driver {driver or 'unknown'}"
    return InputError(
        f"a GPU is visible, but torch cannot use it: {why} (GPU {card}{known}; {torch_build()})",
        hint=f"{_remedy(card, driver, capability)}; to compute on the CPU, say `device: cpu`",
    )


def torch_build() -> str:
    """Name the installed torch and what it was built for."""
    cuda, hip = torch.version.cuda, torch.version.hip
    built_for = f"CUDA {cuda}" if cuda else f"ROCm {hip}" if hip else "CPUs alone"
    return f"torch {torch.__version__}, built for {built_for}"


def _remedy(card: Device, driver: str | None, capability: tuple[int, int] | None) -> str:
    """Say which build of torch a GPU needs, and where it is."""
    install = "install torch for it: pip install --force-reinstall torch --index-url " + _WHEELS
    if card.amd:
        return f"{install}rocmX.Y, of the ROCm of this machine"
    if driver is None:
        return (
            f"{install}cu126; in a container, let the driver in (apptainer --nv, docker --gpus all)"
        )
    newest = int(driver.partition(".")[0])
    if newest < _CUDA_12_DRIVER:
        return f"update the driver to {_CUDA_12_DRIVER} or newer"
    if newest < _CUDA_13_DRIVER or (capability and capability < _CUDA_13_CAPABILITY):
        return f"{install}cu126"
    return f"{install}cu130"


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
    if name == "float8" and (reason := _no_float8(device)):
        raise InputError(
            f"dtype float8 cannot run on {device_name(device)}: {reason}",
            hint="it needs a GPU of compute capability 8.9 or newer, such as an H100 or an L40S, "
            "and a build of torch that multiplies float8 on it; `auto` is float16 on every GPU",
        )
    return DTYPES[name], "asked for"


def _no_float8(device: torch.device) -> str | None:
    """Multiply scaled rows in float8 once; say why that fails, or return None."""
    if device.type != "cuda":
        return "that needs a GPU"
    rows, weight = (reference.float8_rows(torch.eye(32, 64) + n) for n in (0, 1))
    expected = reference.float8_product(rows, weight)
    try:
        there = ((x.to(device), scales.to(device)) for x, scales in (rows, weight))
        got = float8_product(next(there), next(there)).cpu()
    except torch.cuda.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError) as error:
        return _first_line(error)
    return None if torch.allclose(got, expected, rtol=0.02) else "torch's product is wrong there"


def dtype_name(dtype: torch.dtype) -> str:
    """Name a number format as the configuration and receipts do."""
    return next(name for name, known in DTYPES.items() if known == dtype)


def device_name(device: torch.device) -> str:
    """Name the device as its maker does; a CPU is just ``cpu``, and a GPU of Apple ``mps``."""
    if device.type in ("cuda", "xpu"):
        return str(_MODULES[device.type].get_device_name(device))
    return device.type


def peak_memory_bytes() -> int:
    """Return the most memory that was in use so far.

    On a CUDA device what this process had allocated there; without one, the process's resident
    memory.
    """
    allocated = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return allocated or 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
