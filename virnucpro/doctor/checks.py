"""The table of all checks, and what runs them."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from virnucpro.doctor import compute, hardware, places, software
from virnucpro.doctor.finding import Check, Finding, Settings, broken
from virnucpro.errors import VirnucproError

__all__ = ["CHECKS", "describe", "run_checks"]

logger = logging.getLogger(__name__)

CHECKS: dict[str, Check] = {
    "python": software.check_python,
    "torch": software.check_torch,
    "driver": hardware.check_driver,
    "devices": hardware.check_devices,
    "backend": hardware.check_backend,
    "kernels": compute.check_kernels,
    "rate": compute.check_rate,
    "disk": places.check_disk,
    "cache": places.check_cache,
    "locks": places.check_locks,
    "models": places.check_models,
    "scheduler": software.check_scheduler,
    "snakemake": software.check_snakemake,
    "plugins": software.check_plugins,
}
"""What is checked, in this order."""

_REPORT = "report this, with the output of `virnucpro doctor --json` and `virnucpro -v doctor`"


def run_checks(settings: Settings) -> Iterator[Finding]:
    """Yield what each check finds; one that fails itself is a finding too."""
    for name, check in CHECKS.items():
        if name == "rate" and not settings.seconds:
            continue
        try:
            yield check(settings)
        except VirnucproError as error:
            yield broken(name, str(error).partition("\n  hint: ")[0], error.hint or _REPORT)
        except ImportError as error:
            yield broken(name, f"cannot be checked: {error}", "install that first, see torch above")
        except Exception as error:  # whatever is broken here, the other checks go on
            logger.debug("the check %s failed", name, exc_info=error)
            first, *_ = str(error).splitlines() or [""]
            yield broken(name, f"{type(error).__name__}: {first}", _REPORT)


def describe(finding: Finding) -> str:
    """Lay a finding out in lines."""
    first, *details = finding.text.splitlines()
    lines = [f"{finding.status:<8}{finding.name:<11}{first}"]
    lines += [f"{'':19}{detail}" for detail in details]
    if finding.remedy:
        lines.append(f"{'':19}-> {finding.remedy}")
    return "\n".join(lines)
