"""`virnucpro model list`, `fetch` and `verify`."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import click

from virnucpro import formats
from virnucpro.cli.options import DIRECTORY, FILE, OrderedGroup, format_option, step

__all__ = ["model"]

logger = logging.getLogger(__name__)

_MODELS = Path("resources/models")  # of the workflow


@click.group(cls=OrderedGroup)
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
    type=FILE,
    help="Safetensors file to write. [default: resources/models/NAME.safetensors, where the "
    "workflow looks]",
)
@click.option("--receipt", type=FILE, help="Receipt to write. [default: NAME.json beside it]")
@click.option("--download-dir", type=DIRECTORY, help="Where downloads are kept.")
@format_option("model", formats.MODEL_FORMAT)
@step("model fetch", "name", "weights_sha256")
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
@click.argument("weights", type=FILE)
@click.argument("receipt", type=FILE, required=False)
@step("model verify", "name", "weights_sha256")
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
