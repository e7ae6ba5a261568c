"""`virnucpro doctor`."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path

import click

from virnucpro.cli.options import DIRECTORY, device_option

__all__ = ["doctor"]


@click.command()
@device_option
@click.option(
    "-o", "--out", "workdir", default=".", type=DIRECTORY, help="Working directory of the runs."
)
@click.option(
    "--cache-dir", type=DIRECTORY, help="Cache folder.  [default: .cache/virnucpro, in the former]"
)
@click.option(
    "--model",
    default="demo",
    show_default=True,
    help="Whose rate is measured: a name, or converted weights (.safetensors).",
)
@click.option("--rate/--no-rate", default=True, show_default=True, help="Measure a rate.")
@click.option(
    "--seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=10.0,
    show_default=True,
    help="How long to measure.",
)
@click.option("--json", "as_json", is_flag=True, help="For machines, and for issues.")
def doctor(
    device: str,
    workdir: Path,
    cache_dir: Path | None,
    model: str,
    rate: bool,
    seconds: float,
    as_json: bool,
) -> None:
    """Check this installation and this machine, and say what to do.

    Ends with 1 if something is broken. Takes a GPU that no job of this package holds for some
    seconds; nothing is downloaded. The findings go to standard output.
    """
    from virnucpro.cli.device import keep_kernels
    from virnucpro.doctor.checks import describe, run_checks
    from virnucpro.doctor.finding import Settings
    from virnucpro.embed.device_lock import claim_device
    from virnucpro.errors import VirnucproError
    from virnucpro.model.visible import CUDA

    cache_dir = cache_dir or workdir / ".cache" / "virnucpro"
    keep_kernels(cache_dir)
    visible, busy = os.environ.get(CUDA), None
    try:
        device = claim_device(device, wait=False)
    except VirnucproError as error:
        busy = error.message
    settings = Settings(workdir, cache_dir, model, device, visible, busy, seconds if rate else 0.0)
    findings = []
    for finding in run_checks(settings):
        findings.append(finding)
        if not as_json:
            click.echo(describe(finding))
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(each) for each in findings], indent=2))
    if any(finding.status == "broken" for finding in findings):
        sys.exit(1)
