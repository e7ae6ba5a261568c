"""What can be asked for by name, and what it takes."""

from __future__ import annotations

from typing import Any

from virnucpro.model.config import KNOWN_MODELS, ModelConfig
from virnucpro.model.demo import DemoSource
from virnucpro.model.named import ADDRESS, LICENCE, download_bytes, find_local

__all__ = ["list_models"]


def list_models() -> list[dict[str, Any]]:
    """Describe the models that have a name.

    Returns:
        For each: name, layers, dimension (of an embedding), parameters, download_bytes (of the
        published file, about; 0 for the built-in model), memory_bytes of the weights by dtype (the
        memory of a step comes on top), licence, address, and found (where the weights are on this
        machine, before conversion, or None).
    """
    return [_describe(config) for config in KNOWN_MODELS.values()]


def _describe(config: ModelConfig) -> dict[str, Any]:
    demo = config.name == DemoSource.name
    parameters = config.parameters(lm_head=True)
    found = None if demo else find_local(config.name)
    return {
        "name": config.name,
        "layers": config.layers,
        "dimension": config.dim,
        "parameters": parameters,
        "download_bytes": 0 if demo else download_bytes(config),
        "memory_bytes": {"float16": 2 * parameters, "float32": 4 * parameters},
        "licence": LICENCE,
        "address": None if demo else ADDRESS.format(name=config.name),
        "found": "built in, random weights" if demo else str(found.files[0]) if found else None,
    }
