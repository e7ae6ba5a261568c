"""What a check finds, and what all checks are given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

__all__ = ["Check", "Finding", "Settings", "Status", "absent", "broken", "ok", "warning"]

Status = Literal["ok", "warning", "broken", "absent"]


@dataclass(frozen=True)
class Finding:
    """What a check found."""

    name: str  # of the check
    status: Status  # absent: it is not there, and nothing needs it
    text: str  # what was found; lines behind the first one are details
    remedy: str | None = None  # what to do; always there where it is broken


@dataclass(frozen=True)
class Settings:
    """What the checks are given."""

    workdir: Path  # where runs are to be
    cache_dir: Path
    model: str = "demo"  # name, or converted weights, of which the rate is measured
    device: str = "auto"  # as `virnucpro.model.devices.select_device` takes it
    visible: str | None = None  # CUDA_VISIBLE_DEVICES, before a device was claimed
    busy: str | None = None  # why no device could be claimed, so that nothing is computed
    seconds: float = 10.0  # to measure a rate for; 0 for no rate


Check = Callable[[Settings], Finding]


def ok(name: str, text: str) -> Finding:
    """Return a finding that all is well."""
    return Finding(name, "ok", text)


def absent(name: str, text: str, remedy: str | None = None) -> Finding:
    """Return a finding that something is not there which a run can do without."""
    return Finding(name, "absent", text, remedy)


def warning(name: str, text: str, remedy: str) -> Finding:
    """Return a finding that a run works, but not as well as it could."""
    return Finding(name, "warning", text, remedy)


def broken(name: str, text: str, remedy: str) -> Finding:
    """Return a finding that a run will fail, or not do what was meant."""
    return Finding(name, "broken", text, remedy)
