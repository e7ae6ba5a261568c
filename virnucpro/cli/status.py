"""`virnucpro status`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import click

from virnucpro.cli.options import DIRECTORY

__all__ = ["status"]


@click.command()
@click.argument("workdir", metavar="[DIR]", default=".", type=DIRECTORY)
@click.option("--json", "as_json", is_flag=True, help="For machines.")
def status(workdir: Path, as_json: bool) -> None:
    """Say how far a run is: shards, tokens, time left, last error.

    DIR is the run's working directory. Only its files are read, so this works during a run, on any
    machine that sees the folder; what they do not tell is said. The status goes to standard output.
    """
    from virnucpro.status.run import run_status
    from virnucpro.status.text import describe_status

    found = run_status(workdir)
    text = json.dumps(dataclasses.asdict(found), indent=2, ensure_ascii=False)
    click.echo(text if as_json else describe_status(found))
