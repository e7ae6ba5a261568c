"""Where the embeddings come from, as `uns` of embeddings.h5ad and the report say it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from virnucpro import __version__
from virnucpro.embed.receipt import ShardReceipt
from virnucpro.formats import MERGE_FORMAT
from virnucpro.genes.receipt import GenesReceipt
from virnucpro.merge.execution import check_execution
from virnucpro.merge.shards import Shards
from virnucpro.sequences.manifest import Manifest

__all__ = ["DEMO_NOTICE", "provenance"]

DEMO_NOTICE = (
    "These embeddings come from the demo model, whose weights are random: they carry no biology "
    "and are for trying the workflow only."
)


def provenance(
    manifest: Manifest, shards: Shards, genes: Sequence[GenesReceipt] = ()
) -> dict[str, Any]:
    """Describe a sample's inputs, plans, model and device, without times and folders.

    Args:
        manifest: of `split`.
        shards: verified.
        genes: receipts of the files whose contigs the records were found on.

    Returns:
        A nested mapping of strings, numbers and lists of them, as it stands in the file.

    Raises:
        DataError: the shards were not computed in the same way.
    """
    execution = check_execution(shards.receipts)
    first = shards.receipts[0]
    return {
        "format": MERGE_FORMAT,
        "sample": manifest.sample,
        "demo": first.demo,
        "notice": DEMO_NOTICE if first.demo else None,
        "inputs": {
            "file": [file.name for file in manifest.inputs],
            "sha256": [file.sha256 for file in manifest.inputs],
            "records": [file.records for file in manifest.inputs],
        },
        **({"contigs": _found(genes)} if genes else {}),
        "split": manifest.parameters,
        "records": asdict(manifest.records),
        "plan": {**shards.parameters.as_json(), "hash": shards.plans_hash},
        "model": first.model,
        "weights_sha256": first.weights_sha256,
        "layers": first.layers,
        "pooling": first.pooling,
        "pseudo_perplexity": first.pseudo_perplexity,
        "compute_dtype": first.compute_dtype,
        "output_dtype": first.dtype,
        "device": execution.device,
        "backend": execution.backend,
        "tokens_per_step": execution.tokens_per_step,
        "request": _request(shards.receipts),
        "versions": {"merge": __version__, "embed": list(map(_text, execution.versions))},
    }


def _request(receipts: Sequence[ShardReceipt]) -> str | None:
    """Return the request of all shards as JSON, from which a store can take the rows, or None."""
    first = receipts[0].request
    if first is None or any(receipt.request != first for receipt in receipts):
        return None
    return json.dumps(asdict(first), sort_keys=True)


def _found(receipts: Sequence[GenesReceipt]) -> dict[str, Any]:
    """Describe the contigs' files, and what found their genes."""
    return {
        "file": [receipt.input.name for receipt in receipts],
        "sha256": [receipt.input.sha256 for receipt in receipts],
        "contigs": [receipt.input.records for receipt in receipts],
        "genes": [receipt.genes for receipt in receipts],
        "parameters": asdict(receipts[0].parameters),
        "programs": [_text(receipt.programs) for receipt in receipts],
    }


def _text(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
