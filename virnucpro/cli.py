"""The command line: each command is a thin layer over one function.

The commands stand in the order of the data's way. What uses torch is imported inside the command: a
GPU is claimed before that. They print to standard error (`model list` to standard output), and end
with 0 (done), 1 (failed), 2 (bad input or usage), or 143 (ended by SIGTERM).
"""

from __future__ import annotations

import functools
import json
import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import click

from virnucpro import __version__, formats, log
from virnucpro.embed.device_lock import claim_device
from virnucpro.errors import VirnucproError
from virnucpro.files import sha256_meanwhile

__all__ = ["cli", "main"]

logger = logging.getLogger("virnucpro.cli")

_file = click.Path(path_type=Path, dir_okay=False)
_directory = click.Path(path_type=Path, file_okay=False)
_positive = click.IntRange(min=1)
Command = Callable[..., Any]
_DEVICES = "auto, cpu, cuda or cuda:N."
_DTYPES = "auto, float16, bfloat16, float32 or float8."
_MODELS = Path("resources/models")  # of the workflow


def _keep_compiled_kernels(cache_dir: Path | None) -> None:
    """Let Triton keep what it compiles in our cache; to be called before it is imported."""
    if cache_dir is not None:
        os.environ.setdefault("TRITON_CACHE_DIR", str((cache_dir / "triton").absolute()))


def _format_option(what: str, number: int) -> Callable[[Command], Command]:
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


def _step(name: str, *facts: str) -> Callable[[Command], Command]:
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


class _InOrder(click.Group):
    """Lists its commands in the order of the data's way, not of the alphabet."""

    def list_commands(self, _context: click.Context) -> list[str]:
        return list(self.commands)


@click.group(
    cls=_InOrder,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="virnucpro")
@click.option("-v", "--verbose", is_flag=True, help="Log details.")
@click.option("-q", "--quiet", is_flag=True, help="Log warnings and errors only.")
def cli(verbose: bool, quiet: bool) -> None:
    """Turn FASTA files of viral proteins into ESM-2 embeddings, packed without padding.

    The Snakemake workflow runs these commands in this order; each can be run by hand.
    """
    log.configure(1 if verbose else -1 if quiet else 0)


@cli.command()
@click.argument("fasta", nargs=-1, required=True, type=click.Path(path_type=Path, allow_dash=True))
@click.option("--sample", required=True, help="Name of the sample.")
@click.option("--shards", required=True, type=_directory, help="Directory of shards to write.")
@click.option("--records", required=True, type=_file, help="Parquet file of records to write.")
@click.option(
    "--shard-tokens",
    type=_positive,
    default=100_000_000,
    show_default=True,
    help="Most tokens of a shard.",
)
@click.option(
    "--max-invalid-fraction",
    type=click.FloatRange(0, 1),
    default=0.5,
    show_default=True,
    help="Quarantine records in which more of the letters become X.",
)
@click.option(
    "--max-record-residues",
    type=_positive,
    default=100_000,
    show_default=True,
    help="Quarantine longer records.",
)
@click.option(
    "--input-type",
    type=click.Choice(["protein", "any"]),
    default="protein",
    show_default=True,
    help="`protein` refuses what looks like nucleotides; `any` takes all letters as residues.",
)
@click.option(
    "--duplicate-ids",
    type=click.Choice(["error", "suffix"]),
    default="error",
    show_default=True,
    help="What to do with an id that stands on two records.",
)
@_format_option("split", formats.SPLIT_FORMAT)
@_step("split", "sample", "records")
def split(fasta: tuple[Path, ...], shards: Path, **options: Any) -> Any:
    """Read FASTA files, account for every record, and write shards.

    A shard holds distinct sequences. Plain, gz, bz2, xz and zst files are told apart by their
    content; ``-`` is standard input.
    """
    from virnucpro.sequences.split import split as split_fasta

    return split_fasta(list(fasta), shards_dir=shards, **options)


@cli.command()
@click.argument("shard", type=_file)
@click.option("--plan", "plan_path", required=True, type=_file, help="Plan to write (Parquet).")
@click.option("--report", "report_path", required=True, type=_file, help="Efficiency (JSON).")
@click.option(
    "--token-budget", type=_positive, default=4096, show_default=True, help="Tokens of a batch."
)
@click.option(
    "--max-sequence-length",
    type=_positive,
    default=1022,
    show_default=True,
    help="Most residues of a sequence that the model gets.",
)
@click.option(
    "--long-sequences",
    type=click.Choice(["truncate"]),
    default="truncate",
    show_default=True,
    help="What becomes of longer ones: the N-terminal part is kept.",
)
@click.option("--cache-dir", type=_directory, help="Where plans are kept by their content.")
@_format_option("plan", formats.PLAN_FORMAT)
@_step("plan", "items", "batches", "content_hash")
def plan(shard: Path, plan_path: Path, report_path: Path, **options: Any) -> Any:
    """Pack a shard's sequences into batches (First-Fit Decreasing)."""
    from virnucpro.plan.build import plan_shard

    return plan_shard(shard, plan_path, report_path, **options)


@cli.group(cls=_InOrder)
def model() -> None:
    """List, fetch and check model weights."""


@model.command("list")
@click.option("--json", "as_json", is_flag=True, help="For machines; sizes in bytes.")
def model_list(as_json: bool) -> None:
    """List the models that have a name: size, licence, where they are.

    The list goes to standard output.
    """
    from virnucpro.model.catalogue import list_models

    models = list_models()
    click.echo(json.dumps(models, indent=2) if as_json else _model_table(models))


def _model_table(models: list[dict[str, Any]]) -> str:
    """Lay the models out for people, sizes in GB."""
    line = "{:<20} {:>6} {:>9} {:>10} {:>12} {:>10} {:>10}  {:<7}  {}".format
    names = ("name", "layers", "dimension", "parameters", "download GB", "float16 GB")
    rows = [line(*names, "float32 GB", "licence", "on this machine")]
    for entry in models:
        memory = entry["memory_bytes"]
        rows.append(
            line(
                *(entry["name"], entry["layers"], entry["dimension"]),
                f"{entry['parameters'] / 1e6:,.0f}M",
                *(f"{size / 1e9:,.2f}" for size in (entry["download_bytes"], *memory.values())),
                *(entry["licence"], entry["found"] or "-"),
            )
        )
    rows.append("The memory of a step comes on top of the weights: `virnucpro budget` measures it.")
    return "\n".join(rows)


@model.command("fetch")
@click.argument("source")
@click.option(
    "--weights",
    type=_file,
    help="Safetensors file to write. [default: resources/models/NAME.safetensors, where the "
    "workflow looks]",
)
@click.option("--receipt", type=_file, help="Receipt to write. [default: NAME.json beside it]")
@click.option("--download-dir", type=_directory, help="Where downloads are kept.")
@_format_option("model", formats.MODEL_FORMAT)
@_step("model fetch", "name", "weights_sha256")
def model_fetch(
    source: str, weights: Path | None, receipt: Path | None, download_dir: Path | None
) -> Any:
    """Get a model's weights, and convert them once to safetensors.

    SOURCE is `demo`, the name of a model of `virnucpro model list`, a fair-esm .pt file, or a
    folder in the Hugging Face layout. A name is looked for on this machine first: in the download
    folder, in the cache of torch hub, and in that of the Hugging Face hub.
    """
    from virnucpro.model.sources import find_source
    from virnucpro.model.weights import fetch_model

    if weights is None:
        weights = _MODELS / f"{find_source(source, download_dir).name}.safetensors"
    receipt = receipt or weights.with_suffix(".json")
    return fetch_model(source, weights, receipt, download_dir=download_dir)


@model.command("verify")
@click.argument("weights", type=_file)
@click.argument("receipt", type=_file, required=False)
@_step("model verify", "name", "weights_sha256")
def model_verify(weights: Path, receipt: Path | None) -> Any:
    """Check converted WEIGHTS against their RECEIPT.

    The receipt is the .json beside them, unless it is given. In place of the file, the name of a
    model that the workflow has fetched may be given.
    """
    from virnucpro.model.weights import verify_model

    fetched = _MODELS / f"{weights}.safetensors"
    if not weights.suffix and not weights.exists() and fetched.exists():
        weights = fetched
    found = verify_model(weights, receipt or weights.with_suffix(".json"))
    logger.info("%s: weights are whole, sha256 %s", found["name"], found["weights_sha256"])
    return found


@cli.command()
@click.option("--weights", required=True, type=_file, help="Converted weights.")
@click.option("--receipt", required=True, type=_file, help="Receipt of the weights.")
@click.option("--out", required=True, type=_file, help="Token budget to write (JSON).")
@click.option("--device", default="auto", show_default=True, help=_DEVICES)
@click.option("--dtype", default="auto", show_default=True, help=_DTYPES)
@click.option(
    "--plan-token-budget",
    type=_positive,
    default=4096,
    show_default=True,
    help="Tokens of a planned batch.",
)
@click.option(
    "--max-sequence-length",
    type=_positive,
    default=1022,
    show_default=True,
    help="Most residues of a sequence that the model gets.",
)
@click.option("--cache-dir", type=_directory, help="Keeps measured rates and compiled kernels.")
@_format_option("token budget", formats.BUDGET_FORMAT)
@_step("budget", "device", "dtype", "backend", "tokens_per_step")
def budget(weights: Path, receipt: Path, out: Path, cache_dir: Path | None, **options: Any) -> Any:
    """Measure how many tokens a step should compute on this device."""
    _keep_compiled_kernels(cache_dir)
    sha256 = sha256_meanwhile(weights)  # beside the imports of torch, which take as long
    options["device"] = claim_device(options["device"])
    from virnucpro.embed.budget import write_measured_budget

    return write_measured_budget(
        weights, receipt, out, cache_dir=cache_dir, weights_sha256=sha256, **options
    )


@cli.command()
@click.argument("shard", type=_file)
@click.option("--plan", required=True, type=_file, help="Plan of the shard (Parquet).")
@click.option("--weights", required=True, type=_file, help="Converted weights.")
@click.option("--model-receipt", required=True, type=_file, help="Their receipt.")
@click.option("--budget", required=True, type=_file, help="Measured token budget (JSON).")
@click.option("--embeddings", required=True, type=_file, help="Array to write (.npy).")
@click.option("--receipt", required=True, type=_file, help="Receipt to write (JSON).")
@click.option("--trace", required=True, type=_file, help="Time and memory of each step (TSV).")
@click.option("--device", default="auto", show_default=True, help=_DEVICES)
@click.option("--dtype", default="auto", show_default=True, help=_DTYPES)
@click.option(
    "--layers",
    type=int,
    multiple=True,
    default=(-1,),
    show_default=True,
    help="A layer to pool: 1 is the first, -1 the last; may be given several times.",
)
@click.option(
    "--pooling",
    type=click.Choice(["mean"]),
    default="mean",
    show_default=True,
    help="How residues become one vector.",
)
@click.option(
    "--output-dtype",
    type=click.Choice(["float32", "float16"]),
    default="float32",
    show_default=True,
    help="What the embeddings are written in.",
)
@click.option("--token-budget", type=_positive, help="Upper limit of the tokens of a step.")
@click.option("--cache-dir", type=_directory, help="Keeps compiled kernels.")
@_format_option("embeddings", formats.EMBED_FORMAT)
@_step(
    "embed",
    *("shard", "sequences", "model", "device", "backend", "compute_dtype", "tokens_per_step"),
    *("steps", "retries", "recomputed_float32"),
)
def embed(cache_dir: Path | None, **given: Any) -> Any:
    """Run ESM-2 over a planned shard and write one vector a sequence."""
    _keep_compiled_kernels(cache_dir)
    sha256 = sha256_meanwhile(given["weights"])  # beside the imports of torch
    given["device"] = claim_device(given["device"])
    from virnucpro.embed.shard import EmbedOptions, ShardFiles, embed_shard

    names = ShardFiles.__dataclass_fields__
    files = ShardFiles(**{name: given.pop(name) for name in names})
    return embed_shard(files, EmbedOptions(**given), sha256)


def _exports(
    _context: click.Context, _parameter: click.Parameter, values: tuple[str, ...]
) -> dict[str, Path]:
    """Parse ``--export FORMAT=FILE``."""
    exports = {}
    for value in values:
        name, equals, path = value.partition("=")
        if not (name and equals and path):
            raise click.BadParameter(f"{value!r} is not FORMAT=FILE")
        exports[name] = Path(path)
    return exports


@cli.command()
@click.option("--shards", "shards_dir", required=True, type=_directory, help="Directory of shards.")
@click.option("--records", required=True, type=_file, help="records.parquet of `split`.")
@click.option("--plans", "plans_dir", required=True, type=_directory, help="Directory of plans.")
@click.option(
    "--embeddings",
    "embeddings_dir",
    required=True,
    type=_directory,
    help="Directory of shard embeddings.",
)
@click.option("--output", required=True, type=_file, help="AnnData file to write (.h5ad).")
@click.option("--quarantine", required=True, type=_file, help="Records left out, and why (TSV).")
@click.option(
    "--export",
    "exports",
    multiple=True,
    callback=_exports,
    metavar="FORMAT=FILE",
    help="Also write parquet, npy, uniprot-h5 or fair-esm; may be given several times.",
)
@_format_option("merged embeddings", formats.MERGE_FORMAT)
@_step("merge", "read", "embedded", "quarantined", "truncated", "normalised")
def merge(**options: Any) -> Any:
    """Put embeddings into input order; account for every record once."""
    from virnucpro.store.merge import merge as merge_shards

    return merge_shards(**options)


@cli.group(cls=_InOrder)
def report() -> None:
    """Report what is planned, and what came to pass."""


@report.command("plans")
@click.option("--shards", "shards_dir", required=True, type=_directory, help="Directory of shards.")
@click.option("--plans", "plans_dir", required=True, type=_directory, help="Directory of plans.")
@click.option("--json", "json_path", required=True, type=_file, help="Report to write (JSON).")
@click.option("--tsv", "tsv_path", required=True, type=_file, help="Table to write.")
@click.option("--records", type=_file, help="Records, to count what duplicates save.")
@click.option("--cache-dir", type=_directory, help="Where measured rates are kept.")
@click.option("--model", help="Name of the model: adds GPU hours, wall time and disk space.")
@click.option(
    "--layers",
    type=int,
    multiple=True,
    default=(-1,),
    show_default=True,
    help="Layers that will be kept.",
)
@click.option(
    "--output-dtype",
    default="float32",
    show_default=True,
    help="What the embeddings will be written in.",
)
@_format_option("report", formats.REPORT_FORMAT)
@_step("report plans", "sample", "totals")
def report_plans(
    model: str | None, layers: tuple[int, ...], output_dtype: str, **options: Any
) -> Any:
    """Sum up all plans: efficiency and estimated cost, before any GPU."""
    from virnucpro.model.config import KNOWN_MODELS
    from virnucpro.store.cost import Wanted
    from virnucpro.store.report import plans_report

    wanted = None
    if model is not None:
        known = KNOWN_MODELS.get(model)
        wanted = Wanted(model, known.dim if known else None, len(layers), output_dtype)
    return plans_report(**options, wanted=wanted)


@report.command("run")
@click.option("--shards", "shards_dir", required=True, type=_directory, help="Directory of shards.")
@click.option("--plans", "plans_dir", required=True, type=_directory, help="Directory of plans.")
@click.option(
    "--embeddings",
    "embeddings_dir",
    required=True,
    type=_directory,
    help="Directory of shard embeddings.",
)
@click.option("--records", required=True, type=_file, help="records.parquet of `split`.")
@click.option("--quarantine", required=True, type=_file, help="Final quarantine table (TSV).")
@click.option("--json", "json_path", required=True, type=_file, help="Report to write (JSON).")
@click.option("--tsv", "tsv_path", required=True, type=_file, help="Table to write.")
@click.option(
    "--report", "report_dir", required=True, type=_directory, help="Pages and figures to write."
)
@click.option("--cache-dir", type=_directory, help="Where measured rates are kept.")
@_format_option("report", formats.REPORT_FORMAT)
@_step("report run", "sample", "ledger", "measured")
def report_run(**options: Any) -> Any:
    """Compare plan and run, with figures."""
    from virnucpro.store.report import run_report

    return run_report(**options)


@report.command("overview")
@click.argument("samples", nargs=-1, required=True)
@click.option("--results", required=True, type=_directory, help="Holds a folder for each sample.")
@click.option(
    "--report", "report_dir", required=True, type=_directory, help="Pages and figures to write."
)
@_format_option("report", formats.REPORT_FORMAT)
@_step("report overview")
def report_overview(samples: tuple[str, ...], results: Path, report_dir: Path) -> None:
    """Put all SAMPLES into one table, and map their embeddings.

    The map is of principal components, and of UMAP where umap-learn is installed.
    """
    from virnucpro.store.overview import overview

    overview(results, samples, report_dir=report_dir)


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
        cli(prog_name="virnucpro")
    except VirnucproError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except OSError as error:
        click.echo(f"error: {error}", err=True)
        _drop_output()
        sys.exit(1)
    except MemoryError as error:
        click.echo(f"error: out of memory {error}".rstrip(), err=True)
        sys.exit(1)
