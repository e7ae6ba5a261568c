"""`virnucpro run`: the whole workflow by one command."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import click

from virnucpro.cli.configuration import given_values, key_options
from virnucpro.cli.options import DIRECTORY, POSITIVE
from virnucpro.cli.shipped import EXAMPLE, SNAKEFILE, shipped
from virnucpro.cli.workdir import (
    find_files,
    find_samples,
    input_type_of,
    is_prepared,
    write_workdir,
)
from virnucpro.errors import InputError

__all__ = ["run"]

logger = logging.getLogger(__name__)

# Of a core, in float32 by torch: 8M computed 5,000 tokens/s on two (benchmarks/RESULTS.md).
_FLOPS_A_CORE = 35e9
_ARCHIVES = frozenset({".gz", ".bz2", ".xz", ".zst"})
_PROGRESS_SECONDS = 30.0  # between two lines on how far the run is
_COMPRESSED = 2.0  # bytes of residues in a byte of a compressed FASTA file
_CODING = 0.3  # residues of genes in a base of a contig


class _Run(click.Command):
    """Takes the configuration's keys as options, and what stands behind ``--`` as it is."""

    def get_params(self, context: click.Context) -> list[click.Parameter]:
        """Return the options of the command and those of the configuration."""
        *own, help_option = super().get_params(context)
        return [*own, *key_options(), help_option]

    def collect_usage_pieces(self, context: click.Context) -> list[str]:
        """Return the parts of the usage line."""
        return [*super().collect_usage_pieces(context), "[-- OPTIONS OF SNAKEMAKE]"]

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        """Part the options of Snakemake from those before ``--``."""
        at = args.index("--") if "--" in args else len(args)
        rest = super().parse_args(context, args[:at])
        context.params["snakemake_options"] = args[at + 1 :]
        return rest


@click.command(cls=_Run)
@click.argument(
    "files", nargs=-1, metavar="[FILE]...", type=click.Path(exists=True, path_type=Path)
)
@click.option(
    "-o",
    "--out",
    required=True,
    type=DIRECTORY,
    help="Working directory, made where it is missing; results come under its results/.",
)
@click.option("--example", is_flag=True, help="Embed the shipped proteins of phage lambda.")
@click.option(
    "--plan-only", is_flag=True, help="Plan, and say what it will take, before a GPU is taken."
)
@click.option("--cores", type=POSITIVE, help="CPU cores to use.  [default: all]")
def run(
    files: tuple[Path, ...],
    out: Path,
    example: bool,
    plan_only: bool,
    cores: int | None,
    snakemake_options: list[str],
    **parameters: Any,
) -> None:
    """Embed proteins, or the genes of contigs: all steps, by Snakemake.

    FILE is FASTA of proteins or of contigs, or GenBank, told by its content unless --input-type is
    given. Each file is a sample of its own; a folder stands for the FASTA and GenBank files in it.

    Writes a configuration and a sample sheet into the working directory. The same command again
    does what is left; with other options or files, only what they change. Without FILE, runs the
    working directory as it stands, also after you have edited it.
    """
    values = given_values(parameters)
    if example:
        files = (*files, shipped(EXAMPLE))
        values.setdefault("model", "demo")
    if files:
        _prepare(out, files, values)
    elif values or not is_prepared(out):
        raise InputError(
            "options are given, but no file"
            if values
            else f"no file is given, and {out} has no config/samples.tsv to run",
            hint="virnucpro run proteins.faa -o DIR --model NAME; or --example",
        )
    _become_snakemake(out, cores, ["plans"] if plan_only else [], snakemake_options)


def _prepare(out: Path, given: Sequence[Path], values: dict[str, Any]) -> None:
    """Write the working directory; say what the files are, and what a run without a GPU takes."""
    from virnucpro.genes.finder import finder_versions

    if "model" not in values:
        raise InputError(
            "no --model is given",
            hint="`virnucpro model list` has the names; demo has random weights, for trying",
        )
    files = find_files(given)
    if "input_type" not in values:
        values["input_type"], reason = input_type_of(files)
        if values["input_type"] != "protein":
            logger.info("%s", reason)
    if values["input_type"] == "contigs":
        finder_versions()  # refuses to begin without them
    samples = find_samples(files)
    for change in write_workdir(out, samples, values):
        logger.info("%s", change)
    if note := cpu_note(files, values):
        logger.warning("%s", note)


def cpu_note(files: Sequence[Path], values: dict[str, Any]) -> str | None:
    """Say what a run takes that will compute on the CPU, or return None where it won't.

    Args:
        files: FASTA or GenBank.
        values: given ones of the configuration, by dotted name.
    """
    from virnucpro.model.config import KNOWN_MODELS
    from virnucpro.model.visible import visible_devices

    device = values.get("embed.device", "auto")
    if device not in ("auto", "cpu") or (device == "auto" and visible_devices()):
        return None
    why = "as asked" if device == "cpu" else "no GPU is visible"
    if values["model"] not in KNOWN_MODELS:
        return f"{why}: this will compute on the CPU"
    cores = len(os.sched_getaffinity(0))
    tokens = sum(
        path.stat().st_size * (_COMPRESSED if path.suffix in _ARCHIVES else 1.0) for path in files
    )
    if values.get("input_type") == "contigs":
        tokens *= _CODING
    operations = 2.0 * KNOWN_MODELS[values["model"]].parameters() * tokens
    minutes = operations / (cores * _FLOPS_A_CORE) / 60
    return (
        f"{why}: this will compute on the CPU, which takes about {_duration(minutes)} on "
        f"{cores} cores if nothing is done yet; --plan-only says what GPUs would take"
    )


def _duration(minutes: float) -> str:
    """Round a time to what an estimate is good for."""
    if minutes < 1:
        return "a minute"
    if minutes < 100:
        return f"{minutes:.0f} minutes"
    return f"{minutes / 60:,.0f} hours" if minutes < 6000 else f"{minutes / 1440:,.0f} days"


def snakemake_command(
    out: Path, cores: int | None, targets: Sequence[str], options: Sequence[str]
) -> list[str]:
    """Return the call of Snakemake on the shipped workflow with `out` as its working directory."""
    return [
        *(sys.executable, "-m", "snakemake", *targets),
        *("--snakefile", str(shipped(SNAKEFILE)), "--directory", str(out.absolute())),
        *("--cores", str(cores or "all"), *options),
    ]


def _become_snakemake(
    out: Path, cores: int | None, targets: Sequence[str], options: Sequence[str]
) -> NoReturn:
    """Put Snakemake in the place of this process: signals and the exit status are its own."""
    command = snakemake_command(out, cores, targets, options)
    logger.debug("%s", command)
    sys.stdout.flush()
    sys.stderr.flush()
    if sys.stderr.isatty() and logger.isEnabledFor(logging.INFO):
        _show_progress(out)
    os.execv(command[0], command)  # noqa: S606


def _show_progress(out: Path) -> None:
    """Start a process that says how far the run is, until this one, and so Snakemake, has ended.

    A child, for this process becomes Snakemake; after Ctrl-C it goes on while jobs are stopped.
    """
    from virnucpro.status.watch import watch

    parent = os.getpid()
    if os.fork():
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        watch(
            out,
            lambda: os.getppid() == parent,
            lambda line: click.echo(line, err=True),
            interval=_PROGRESS_SECONDS,
        )
    finally:
        os._exit(0)  # what else this process had to do is the parent's
