"""Builders of models and of the files in which they are published."""

import argparse
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from esm.model.esm2 import ESM2

TINY = {"layers": 2, "dim": 32, "heads": 4}


def _perturb(model: torch.nn.Module, seed: int) -> None:
    """Move every bias and every LayerNorm away from the 0 and 1 that would hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "norm" in name.lower():
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)


def make_esm2(layers: int = 2, dim: int = 32, heads: int = 4, seed: int = 0) -> ESM2:
    """fair-esm's ESM2 with its own initialisation, perturbed, in evaluation mode."""
    torch.manual_seed(seed)
    model = ESM2(num_layers=layers, embed_dim=dim, attention_heads=heads)
    _perturb(model, seed)
    return model.eval().requires_grad_(False)


def round_frequencies(model: ESM2) -> ESM2:
    """Round the rotary frequencies to float16, as they stand in the published files."""
    for layer in model.layers:
        rotary = layer.self_attn.rot_emb
        rotary.inv_freq = rotary.inv_freq.half().float()
    return model


def published(model: ESM2) -> dict[str, Any]:
    """What a published .pt holds, contact head left out."""
    state = {}
    for name, tensor in model.state_dict().items():
        if name.startswith("lm_head."):
            state[f"encoder.{name}"] = tensor
        elif not name.startswith("contact_head."):
            state[f"encoder.sentence_encoder.{name}"] = tensor
    cfg = argparse.Namespace(
        encoder_layers=model.num_layers,
        encoder_embed_dim=model.embed_dim,
        encoder_attention_heads=model.attention_heads,
        token_dropout=True,
        arch="roberta_large",
    )
    return {"cfg": {"model": cfg}, "model": state}


def make_huggingface(cls_name: str = "EsmForMaskedLM", *, seed: int = 0, **changes: Any):
    """A transformers model of ESM-2's kind, perturbed, in evaluation mode."""
    transformers = pytest.importorskip("transformers")
    values = {
        "vocab_size": 33,
        "mask_token_id": 32,
        "pad_token_id": 1,
        "hidden_size": TINY["dim"],
        "num_hidden_layers": TINY["layers"],
        "num_attention_heads": TINY["heads"],
        "intermediate_size": 4 * changes.get("hidden_size", TINY["dim"]),
        "position_embedding_type": "rotary",
        "emb_layer_norm_before": False,
        "token_dropout": True,
        "layer_norm_eps": 1e-5,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    torch.manual_seed(seed)
    model = getattr(transformers, cls_name)(transformers.EsmConfig(**(values | changes)))
    _perturb(model, seed)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def build() -> SimpleNamespace:
    """The builders, by name."""
    return SimpleNamespace(
        esm2=make_esm2,
        round_frequencies=round_frequencies,
        published=published,
        huggingface=make_huggingface,
    )


@pytest.fixture
def publish(tmp_path: Path) -> Callable[..., Path]:
    """Write a model to a .pt in the published structure; `edit` may change the content first."""

    def write(
        model: ESM2, name: str = "esm2_tiny", edit: Callable[[dict[str, Any]], object] | None = None
    ) -> Path:
        content = published(model)
        if edit is not None:
            edit(content)
        path = tmp_path / f"{name}.pt"
        torch.save(content, path)
        return path

    return write


@pytest.fixture(autouse=True)
def empty_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the models that this machine may have out of the tests."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "no-torch"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "no-huggingface"))
