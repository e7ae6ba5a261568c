"""`virnucpro embed`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from virnucpro import formats
from virnucpro.cli.options import (
    FILE,
    POSITIVE,
    cache_dir_option,
    device_option,
    dtype_option,
    format_option,
    layers_option,
    output_dtype_option,
    pooling_option,
    pseudo_perplexity_option,
    shard_argument,
    step,
    store_option,
    weights_option,
)

__all__ = ["embed"]


@click.command()
@shard_argument
@click.option("--plan", required=True, type=FILE, help="Plan of the shard (Parquet).")
@weights_option
@click.option("--model-receipt", required=True, type=FILE, help="Receipt of the weights.")
@click.option("--budget", required=True, type=FILE, help="Measured token budget (JSON).")
@click.option("--embeddings", required=True, type=FILE, help="Array to write (.npy).")
@click.option("--receipt", required=True, type=FILE, help="Receipt to write (JSON).")
@click.option("--step-log", required=True, type=FILE, help="Time and memory of each step (TSV).")
@device_option
@dtype_option
@layers_option(help="A layer to pool: 1 is the first, -1 the last; may be given several times.")
@pooling_option
@click.option(
    "--accept-float8-residues",
    type=bool,
    default=False,
    show_default=True,
    help="Let `--pooling=none` go with float8, in which single residues are less exact.",
)
@pseudo_perplexity_option
@output_dtype_option(["float32", "float16"], help="What the embeddings are written in.")
@click.option("--token-budget", type=POSITIVE, help="Maximum tokens per step.")
@store_option(help="Take known rows from these stores, and add new ones.")
@click.option(
    "--store-accept",
    type=click.Choice(["same", "close"]),
    default="same",
    show_default=True,
    help="Rows that are taken: the same to the bit, or also of another device or T.",
)
@cache_dir_option(help="Keeps compiled kernels.")
@format_option("embeddings", formats.EMBED_FORMAT)
@step(
    "embed",
    *("shard", "sequences", "model", "device", "backend", "compute_dtype", "tokens_per_step"),
    *("steps", "retries", "recomputed_float32", "known"),
)
def embed(cache_dir: Path | None, **options: Any) -> Any:
    """Run ESM-2 over a planned shard and write one vector per sequence.

    With `--pooling=none` and `--pseudo-perplexity`, further arrays are written beside it:
    SHARD.residues.npy and SHARD.pseudo_perplexity.npy.
    """
    from virnucpro.cli.device import claim_gpu, keep_kernels

    keep_kernels(cache_dir)
    known = None
    if options["store"]:  # a shard of which all is known needs no device
        from virnucpro.embed.known import fill_shard, look_up_shard

        known = look_up_shard(*_files_and_options(options))
        if known and (receipt := fill_shard(*_files_and_options(options), known)):
            return receipt
    options["device"], sha256 = claim_gpu(options["device"], options["weights"])
    from virnucpro.embed.shard import embed_shard

    return embed_shard(*_files_and_options(options), sha256, known)


def _files_and_options(options: dict[str, Any]) -> tuple[Any, Any]:
    from virnucpro.embed.job import EmbedOptions, ShardFiles

    files = {name: options[name] for name in ShardFiles.__dataclass_fields__}
    rest = {name: value for name, value in options.items() if name not in files}
    return ShardFiles(**files), EmbedOptions(**rest)
