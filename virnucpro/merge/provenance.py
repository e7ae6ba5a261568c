"""Where the embeddings come from: what stands in `uns` of embeddings.h5ad and in the report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

from virnucpro import __version__
from virnucpro.formats import MERGE_FORMAT
from virnucpro.merge.receipts import check_agreement

__all__ = ["DEMO_NOTICE", "provenance"]

DEMO_NOTICE = (
    "These embeddings come from the demo model, whose weights are random: they carry no biology "
    "and are for trying the workflow only."
)


def provenance(
    manifest: dict[str, Any], receipts: Sequence[dict[str, Any]], plan: dict[str, Any]
) -> dict[str, Any]:
    """Describe a sample's inputs, plans, model and device, without times and folders.

    Args:
        manifest: of `split`.
        receipts: of all shards.
        plan: the plans' common parameters and the hash over all of them.

    Returns:
        A nested mapping of strings, numbers and lists of them.

    Raises:
        DataError: the shards were not computed in the same way.
    """
    distinct = check_agreement(receipts)
    first = receipts[0]
    inputs = manifest["inputs"]
    return {
        "format": MERGE_FORMAT,
        "sample": manifest["sample"],
        "demo": first["demo"],
        "notice": DEMO_NOTICE if first["demo"] else None,
        "inputs": {
            "file": [PurePath(entry["path"]).name for entry in inputs],
            "sha256": [entry["sha256"] for entry in inputs],
            "records": [entry["records"] for entry in inputs],
        },
        "split": manifest["parameters"],
        "records": manifest["records"],
        "plan": plan,
        "model": first["model"],
        "weights_sha256": first["weights_sha256"],
        "layers": first["layers"],
        "pooling": first["pooling"],
        "pseudo_perplexity": first["pseudo_perplexity"],
        "compute_dtype": first["compute_dtype"],
        "output_dtype": first["dtype"],
        "device": distinct["device"],
        "backend": distinct["backend"],
        "tokens_per_step": distinct["tokens_per_step"],
        "versions": {
            "merge": __version__,
            "embed": [_version(entry) for entry in distinct["versions"]],
        },
    }


def _version(versions: dict[str, Any]) -> str:
    return ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
