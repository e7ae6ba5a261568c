"""Checks that compute: the kernels against their references, and a rate."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from virnucpro.doctor.finding import Finding, Settings, absent, broken, ok, warning

if TYPE_CHECKING:  # these import torch, which may be what is broken
    from torch import Tensor

    from virnucpro.model.config import ModelConfig
    from virnucpro.model.esm2 import PackedESM2
    from virnucpro.model.trial import Agreement

    Weights: TypeAlias = tuple[ModelConfig, dict[str, Tensor]]

__all__ = ["check_kernels", "check_rate"]

_FLOAT8_CAPABILITY = (8, 9)
_MAX_SEQUENCE_LENGTH = 1022  # as the configuration's default, and the next
_PLAN_TOKENS = 4096
_SLOW = 0.5  # of the rate that was measured on such a device


def check_kernels(settings: Settings) -> Finding:
    """Compare what would compute with its reference, on a small batch.

    Triton's kernels are compared with plain torch; where none would be used, the packed model is
    compared with itself on one sequence at a time.
    """
    from virnucpro.doctor.parity import compare_packed
    from virnucpro.model.demo import DemoSource

    if settings.busy is not None:
        return warning("kernels", "not tried: no GPU is free", "run doctor again when one is")
    model = _build(DemoSource().read(), settings.device)
    found = [*_compare_fused(model), compare_packed(model)]
    text = f"error to the reference on {model.device}: {', '.join(map(str, found))}"
    if all(agreement.holds for agreement in found):
        return ok("kernels", text)
    return broken(
        "kernels",
        text,
        "do not embed here: results would be wrong. Remove the folder triton in cache_dir, try "
        "another build of torch, and report this with the output of `virnucpro doctor --json`",
    )


def check_rate(settings: Settings) -> Finding:
    """Measure tokens a second, as an entry of `virnucpro.report.rates.SHIPPED_RATES`."""
    from virnucpro.embed.measure import measure_budget
    from virnucpro.embed.probe import measure_rate
    from virnucpro.embed.readout import Readout
    from virnucpro.model.devices import device_name
    from virnucpro.report.rates import SHIPPED_RATES
    from virnucpro.sequences.alphabet import SPECIAL_TOKENS

    if settings.busy is not None:
        return warning("rate", "not measured: no GPU is free", "run doctor again when one is")
    weights = _read_weights(settings.model)
    if weights is None:
        return absent(
            "rate",
            f"{settings.model} is not on this machine: nothing is downloaded here",
            f"virnucpro model fetch {settings.model}",
        )
    model, longest = _build(weights, settings.device), _MAX_SEQUENCE_LENGTH + SPECIAL_TOKENS
    readout = Readout([model.config.layers])
    tokens = longest  # on a CPU larger steps bring nothing
    if model.device.type == "cuda":
        budget = measure_budget(
            *(model, "", readout), plan_token_budget=_PLAN_TOKENS, max_seqlen=longest
        )
        tokens = budget.tokens_per_step
    rate = measure_rate(model, readout, tokens, longest, settings.seconds)
    key = f"{device_name(model.device)}/{model.config.name}/{model.precision}"
    text = f'"{key}": {math.floor(rate):_},\n{tokens:,} tokens a step, {settings.seconds:g} s'
    if rate < _SLOW * (usual := SHIPPED_RATES.get(key, 0)):
        return warning(
            "rate",
            f"{text}; {usual:,} tokens/s were measured on such a device",
            "look for other programs on this GPU, and why its clock is held back, with "
            "`nvidia-smi -q -d PERFORMANCE`",
        )
    return ok("rate", text)


def _build(weights: Weights, device_name: str) -> PackedESM2:
    """Make a model on its device, as a run would."""
    from virnucpro.model.devices import select_device, select_dtype
    from virnucpro.model.loading import build_model

    device, _ = select_device(device_name)
    dtype, _ = select_dtype("auto", device)
    return build_model(*weights, dtype=dtype, device=device)


def _read_weights(model: str) -> Weights | None:
    """Read a model's shape and weights, without a download; None where they are not here."""
    from virnucpro.model.config import KNOWN_MODELS
    from virnucpro.model.demo import DemoSource
    from virnucpro.model.named import find_local
    from virnucpro.model.sources import find_source
    from virnucpro.model.weights import load_weights

    path = Path(model)
    if path.suffix == ".safetensors":
        return load_weights(path, path.with_suffix(".json"))
    if model in KNOWN_MODELS and model != DemoSource.name:
        found = find_local(model)
        return found.read() if found else None
    return find_source(model).read()


def _compare_fused(model: PackedESM2) -> list[Agreement]:
    """Compare Triton's kernels with their references, where the model uses them."""
    import torch

    from virnucpro.model.attention import TileAttention
    from virnucpro.model.trial import compare

    backend = model.backend
    if backend.name != TileAttention.name:
        return []
    float8 = torch.cuda.get_device_capability(model.device) >= _FLOAT8_CAPABILITY
    arguments = backend.attention, backend.kernels, model.device, model.dtype, model.config
    return compare(*arguments, float8=float8)
