"""The kind of a CPU, which is a part of the request: sums round by the width of its vectors."""

from __future__ import annotations

import platform
from pathlib import Path

__all__ = ["processor_kind"]

_CPUINFO = Path("/proc/cpuinfo")
_NAMES = ("vendor_id", "cpu family", "model", "CPU implementer", "CPU part")


def processor_kind(capability: str) -> str:
    """Name the kind of this machine's CPU, for `Request.device`.

    Libraries choose their code by maker and model, torch by what `capability` says.

    Args:
        capability: the vector instructions in use, as `torch.backends.cpu.get_cpu_capability`
            gives them.

    Returns:
        For instance ``cpu x86_64 AuthenticAMD 25 17 AVX512``.
    """
    facts = {}
    try:
        first, _, _ = _CPUINFO.read_text().partition("\n\n")
    except OSError:  # not Linux
        first = ""
    for line in first.splitlines():
        name, _, value = line.partition(":")
        facts[name.strip()] = value.strip()
    told = [facts[name] for name in _NAMES if name in facts]
    return " ".join(["cpu", platform.machine(), *told, capability])
