"""The command line: each command is a thin layer over one function.

Each step has a module, and the commands are listed in the order in which they are run; what several
of them share is in `options`. What uses torch is imported inside the command, after a GPU was
claimed (`device`). They print to standard error (`model list` to standard output), and end with 0
(done), 1 (failed), 2 (bad input or usage), 130 (interrupted, Ctrl-C) or 143 (ended by SIGTERM).
"""

from __future__ import annotations

import errno
import logging
import os
import signal
import sys
from types import FrameType
from typing import NoReturn

import click

from virnucpro import __version__, log
from virnucpro.cli import (
    budget,
    doctor,
    embed,
    genes,
    merge,
    model,
    plan,
    report,
    run,
    split,
    status,
    store,
    withdraw,
)
from virnucpro.cli.options import OrderedGroup
from virnucpro.errors import VirnucproError

__all__ = ["cli", "main"]

logger = logging.getLogger(__name__)


@click.group(
    cls=OrderedGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="virnucpro")
@click.option("-v", "--verbose", is_flag=True, help="Log details.")
@click.option("-q", "--quiet", is_flag=True, help="Log warnings and errors only.")
def cli(verbose: bool, quiet: bool) -> None:
    """Turn FASTA files of viral proteins into ESM-2 embeddings, packed without padding.

    `run` does everything: it calls a Snakemake workflow, which runs the commands listed below it,
    in this order. Each can also be run by hand.
    """
    log.configure(1 if verbose else -1 if quiet else 0)


cli.add_command(run.run)
cli.add_command(status.status)
cli.add_command(doctor.doctor)
cli.add_command(genes.genes)
cli.add_command(split.split)
cli.add_command(plan.plan)
cli.add_command(model.model)
cli.add_command(budget.budget)
cli.add_command(embed.embed)
cli.add_command(withdraw.withdraw)
cli.add_command(merge.merge)
cli.add_command(report.report)
cli.add_command(store.store)


def _terminate(_signal: int, _frame: FrameType | None) -> NoReturn:
    """End at once but in order: temporary files are removed on the way out."""
    raise SystemExit(128 + signal.SIGTERM)


def _open_streams() -> None:
    """Put something where a standard stream is closed, else the next file gets its number.

    What a library says would then go into that file. The log is dropped; standard output becomes a
    broken pipe, so that what was asked for on it is not lost with exit status 0.
    """
    for number, name in ((1, "stdout"), (2, "stderr")):
        try:
            os.fstat(number)
        except OSError:
            if name == "stdout":
                reader, writer = os.pipe()
                os.close(reader)  # first: it may have the very number that is closed
            else:
                writer = os.open(os.devnull, os.O_WRONLY)
            if writer != number:
                os.dup2(writer, number)
                os.close(writer)
            setattr(sys, name, open(number, "w", closefd=False))  # noqa: SIM115


def _drop_output() -> None:
    """Let go of what could not be printed: Python would try again at its end, and exit with 120."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def main() -> None:
    """Run the command line and turn the package's errors into a sentence and an exit status."""
    _open_streams()
    signal.signal(signal.SIGTERM, _terminate)
    try:
        # Not standalone: click would make exit status 1 of an interruption.
        sys.exit(cli(prog_name="virnucpro", standalone_mode=False))
    except (click.Abort, KeyboardInterrupt) as error:
        _end_interrupted(error)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except VirnucproError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except OSError as error:
        if error.errno != errno.EPIPE:  # a reader that has gone wants no sentence
            click.echo(f"error: {error}", err=True)
        _drop_output()
        sys.exit(1)
    except MemoryError as error:
        click.echo(f"error: out of memory {error}".rstrip(), err=True)
        sys.exit(1)
    except (RuntimeError, ImportError) as error:
        _end_by_library(error)


def _end_interrupted(error: BaseException) -> NoReturn:
    """End after Ctrl-C; click makes the same of a file that ends too early."""
    if isinstance(error.__cause__, EOFError):
        click.echo(f"error: a file ends too early {error.__cause__}".rstrip(), err=True)
        sys.exit(1)
    click.echo("interrupted", err=True)
    sys.exit(128 + signal.SIGINT)


def _end_by_library(error: Exception) -> NoReturn:
    """End after an error of torch, of CUDA's driver, or of a package that cannot be imported.

    What went wrong is in its first line; torch puts advice on debugging into the others.
    """
    logger.debug("details", exc_info=error)
    first, *_ = str(error).strip().splitlines() or [""]
    click.echo(f"error: {type(error).__name__}: {first}", err=True)
    click.echo("  hint: `virnucpro --verbose` with the same command logs the details", err=True)
    sys.exit(1)
