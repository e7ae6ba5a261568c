"""What the commands share: types, options that stand on more than one of them, and decorators.

An option whose help depends on the command is a function of it.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from virnucpro import formats, log

__all__ = [
    "DIRECTORY",
    "FILE",
    "POSITIVE",
    "Command",
    "OrderedGroup",
    "cache_dir_option",
    "device_option",
    "dtype_option",
    "embeddings_option",
    "format_option",
    "layers_option",
    "max_sequence_length_option",
    "output_dtype_option",
    "planned_tokens_option",
    "plans_option",
    "pooling_option",
    "pseudo_perplexity_option",
    "records_option",
    "shard_argument",
    "shards_option",
    "step",
    "store_option",
    "weights_option",
]

Command = Callable[..., Any]
FILE = click.Path(path_type=Path, dir_okay=False)
DIRECTORY = click.Path(path_type=Path, file_okay=False)
POSITIVE = click.IntRange(min=1)

shard_argument = click.argument("shard", type=FILE)
weights_option = click.option("--weights", required=True, type=FILE, help="Converted weights.")
device_option = click.option(
    "--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N, mps or xpu."
)
dtype_option = click.option(
    "--dtype",
    default="auto",
    show_default=True,
    help="auto, float16, bfloat16, float32 or float8.",
)
max_sequence_length_option = click.option(
    "--max-sequence-length",
    type=POSITIVE,
    default=1022,
    show_default=True,
    help="Maximum residues of a sequence that the model computes at once.",
)
# What the steps before have written, for those that read it all.
shards_option = click.option(
    "--shards", "shards_dir", required=True, type=DIRECTORY, help="Directory of shards."
)
records_option = click.option(
    "--records", required=True, type=FILE, help="records.parquet of `split`."
)
plans_option = click.option(
    "--plans", "plans_dir", required=True, type=DIRECTORY, help="Directory of plans."
)
embeddings_option = click.option(
    "--embeddings",
    "embeddings_dir",
    required=True,
    type=DIRECTORY,
    help="Directory of shard embeddings.",
)


def planned_tokens_option(name: str, *, help: str) -> Callable[[Command], Command]:
    """Add the tokens of a planned batch, which each command calls by another `name`."""
    return click.option(name, type=POSITIVE, default=4096, show_default=True, help=help)


pseudo_perplexity_option = click.option(
    "--pseudo-perplexity",
    type=click.Choice(formats.PSEUDO_PERPLEXITIES),
    default="none",
    show_default=True,
    help="Also score each sequence by the model's likelihood of it, in one pass without masking.",
)
pooling_option = click.option(
    "--pooling",
    type=click.Choice(list(formats.POOLINGS)),
    default="mean",
    show_default=True,
    help="How residues become one vector; `none` keeps every residue, and their mean.",
)


def layers_option(*, help: str) -> Callable[[Command], Command]:
    """Add ``--layers``: those whose embeddings are kept."""
    return click.option(
        "--layers", type=int, multiple=True, default=(-1,), show_default=True, help=help
    )


def output_dtype_option(
    choices: Sequence[str] | None = None, *, help: str
) -> Callable[[Command], Command]:
    """Add ``--output-dtype``, of the embeddings; without `choices` the command looks at it."""
    return click.option(
        "--output-dtype",
        type=click.Choice(choices) if choices else str,
        default="float32",
        show_default=True,
        help=help,
    )


def store_option(*, help: str) -> Callable[[Command], Command]:
    """Add ``--store``: folders, joined by colons as in a search path."""

    def parse(_context: click.Context, _parameter: click.Parameter, value: str) -> tuple[Path, ...]:
        return tuple(Path(folder) for folder in value.split(os.pathsep) if folder)

    return click.option("--store", default="", callback=parse, metavar="DIR[:DIR...]", help=help)


def cache_dir_option(*, help: str) -> Callable[[Command], Command]:
    """Add ``--cache-dir``: the one folder, of which each command uses another part."""
    return click.option("--cache-dir", type=DIRECTORY, help=help)


def format_option(what: str, number: int) -> Callable[[Command], Command]:
    """Add ``--format``: the caller's format number, refused when it is not the package's."""

    def check(_context: click.Context, _parameter: click.Parameter, value: int | None) -> None:
        if value is not None:
            formats.check_format(what, value, number, path="--format")

    return click.option(
        "--format",
        type=int,
        callback=check,
        expose_value=False,
        help=f"Refuse to run unless this is the format number in use ({number}).",
    )


def step(name: str, *facts: str) -> Callable[[Command], Command]:
    """End a command's log with a line of JSON that has `facts` of what it returns."""

    def timed(command: Command) -> Command:
        @functools.wraps(command)
        def run(*args: Any, **options: Any) -> None:
            with log.step(name) as result:
                result.update(_pick(command(*args, **options), facts))

        return run

    return timed


def _pick(returned: Any, facts: tuple[str, ...]) -> dict[str, Any]:
    """Take `facts` out of a dict or an object."""
    if isinstance(returned, dict):
        return {fact: returned[fact] for fact in facts}
    return {fact: getattr(returned, fact) for fact in facts}


class OrderedGroup(click.Group):
    """Lists its commands in the order in which they are run, not alphabetically."""

    def list_commands(self, _context: click.Context) -> list[str]:
        """Return them as they were added."""
        return list(self.commands)
