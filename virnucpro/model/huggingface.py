"""ESM-2 in the Hugging Face layout: a folder with ``config.json`` and weights, named as there.

Names and defaults are those of ``transformers.EsmConfig`` and ``transformers.EsmModel``; the
library itself is not needed.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from virnucpro.errors import InputError
from virnucpro.files import sha256_of
from virnucpro.model.canonical import canonical_state, make_config
from virnucpro.model.config import VOCABULARY_SIZE, ModelConfig, list_names
from virnucpro.model.foreign import describe_content, refuse_foreign
from virnucpro.model.pickles import load_tensors_only

__all__ = ["HuggingFaceSource"]

_EXPECTED = "an ESM-2 model is expected, as facebook/esm2_t33_650M_UR50D on the Hugging Face hub"
# Endings of weights of TensorFlow, Flax, ONNX, llama.cpp and others.
_OTHER_WEIGHTS = {".h5", ".msgpack", ".onnx", ".gguf", ".ot", ".ckpt", ".index"}

# What makes an Esm model ESM-2. A value that config.json leaves out is EsmConfig's default.
_ESM2 = {
    "model_type": "esm",
    "position_embedding_type": "rotary",
    "rope_theta": 10000.0,
    "token_dropout": True,
    "vocab_size": VOCABULARY_SIZE,
    "pad_token_id": 1,
    "mask_token_id": 32,
    "emb_layer_norm_before": False,
    "layer_norm_eps": 1e-5,
    "is_folding_model": False,
}
_DEFAULTS: dict[str, Any] = {
    "position_embedding_type": "absolute",
    "rope_theta": 10000.0,
    "token_dropout": False,
    "emb_layer_norm_before": False,
    "layer_norm_eps": 1e-12,
    "is_folding_model": False,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
}

_RENAMED = [
    (r"^esm\.", ""),
    (r"^embeddings\.word_embeddings\.", "embed_tokens."),
    (r"^encoder\.emb_layer_norm_after\.", "emb_layer_norm_after."),
    (r"^encoder\.layer\.", "layers."),
    (r"\.attention\.self\.query\.", ".self_attn.q_proj."),
    (r"\.attention\.self\.key\.", ".self_attn.k_proj."),
    (r"\.attention\.self\.value\.", ".self_attn.v_proj."),
    (r"\.attention\.output\.dense\.", ".self_attn.out_proj."),
    (r"\.attention\.LayerNorm\.", ".self_attn_layer_norm."),
    (r"\.intermediate\.dense\.", ".fc1."),
    (r"\.output\.dense\.", ".fc2."),
    (r"\.LayerNorm\.", ".final_layer_norm."),
    (r"^lm_head\.decoder\.weight$", "lm_head.weight"),
    # transformers 5 writes the names that TensorFlow gave to layer normalisation
    (r"(layer_norm)\.gamma$", r"\1.weight"),
    (r"(layer_norm)\.beta$", r"\1.bias"),
]
# In the published files without being used: the buffer of positions, a table of absolute positions
# that a rotary model never reads, and EsmModel's pooler, which ESM-2 was not trained with.
_UNUSED = re.compile(r"^(esm\.)?(embeddings\.position_(ids|embeddings\.weight)|pooler\.dense\..*)$")


class HuggingFaceSource:
    """A local folder as a source of weights (see `virnucpro.model.sources.Source`).

    Args:
        folder: the folder.
        name: what the model is called, or None for the folder's name.

    Raises:
        InputError: there is no ``config.json``, or no weights are beside it.
    """

    demo = False

    def __init__(self, folder: Path, name: str | None = None) -> None:
        self.folder = folder
        self.name = name or folder.resolve().name
        self.weight_files = _weight_files(folder)
        self.files: tuple[Path, ...] = (folder / "config.json", *self.weight_files)

    def fingerprint(self) -> str:
        """Hash the names and hashes of the files that are read, as ``sha256sum`` lists them."""
        lines = [f"{sha256_of(path)}  {path.name}\n" for path in sorted(self.files)]
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def read(self) -> tuple[ModelConfig, dict[str, Tensor]]:
        """Read the weights, mapped into memory.

        Raises:
            InputError: it is not an ESM-2 model, or a file is damaged.
        """
        config = _read_config(self.folder / "config.json", self.name)
        state: dict[str, object] = {}
        for path in self.weight_files:
            part = _read_weights(path)
            if twice := state.keys() & part.keys():
                raise InputError(f"{min(twice)} is in two files", path=path)
            state |= part
        named = {_fair_esm_name(key): tensor for key, tensor in state.items() if not _unused(key)}
        if len(named) != sum(not _unused(key) for key in state):
            raise InputError("holds the same tensor under two names", path=self.folder)
        return config, canonical_state(config, named, self.folder)


def _weight_files(folder: Path) -> tuple[Path, ...]:
    """Find the files of weights, in the order in which transformers prefers them."""
    if not (folder / "config.json").is_file():
        raise _no_model(folder)
    for name in ("model.safetensors", "pytorch_model.bin"):
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            return (folder / name,)
        if index.is_file():
            return _indexed_files(index)
    others = sorted(path.name for path in folder.iterdir() if path.suffix in _OTHER_WEIGHTS)
    found = f" that can be read, only {list_names(others)}" if others else ""
    raise InputError(
        f"holds no weights{found}",
        path=folder,
        hint="model.safetensors, pytorch_model.bin, or either with its index and shards, is "
        "expected" + ("; those found are of another library" if others else ""),
    )


def _no_model(folder: Path) -> InputError:
    """Say what a folder without config.json holds, and what might have been meant."""
    names = sorted(path.name for path in folder.iterdir())
    published = [name for name in names if name.endswith((".pt", ".pth"))]
    snapshots = sorted((folder / "snapshots").glob("*/config.json"))
    inner = sorted(folder.glob("*/config.json"))
    hint = "a model in the Hugging Face layout has config.json beside its weights"
    if published:
        hint = f"for the .pt file give its own path, {folder / published[0]}"
    elif snapshots or inner:
        hint = f"did you mean {(snapshots or inner)[0].parent}?"
    found = list_names(names) if names else "nothing"
    return InputError(
        f"has no config.json, and so is not a model in the Hugging Face layout (found: {found})",
        path=folder,
        hint=hint,
    )


def _indexed_files(index: Path) -> tuple[Path, ...]:
    """Read which files hold the shards of the weights."""
    weight_map = _read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError("has no weight_map", path=index)
    names = sorted({str(name) for name in weight_map.values()})
    for name in names:
        if Path(name).name != name:
            raise InputError(f"names a file outside its folder: {name!r}", path=index)
        if not (index.parent / name).is_file():
            raise InputError(f"names {name}, which is not there", path=index)
    return tuple(index.parent / name for name in names)


def _read_config(path: Path, name: str) -> ModelConfig:
    """Read the model's shape, and check that it computes what ESM-2 computes."""
    values = _DEFAULTS | _read_json_object(path)
    if values.get("model_type") != _ESM2["model_type"]:
        raise InputError(
            f"is not ESM-2: model_type is {values.get('model_type')!r}, not 'esm' "
            f"(architectures: {values.get('architectures')!r})",
            path=path,
            hint=_EXPECTED,
        )
    layers, dim = values["num_hidden_layers"], values["hidden_size"]
    config = make_config(name, layers, dim, values["num_attention_heads"], path)
    expected = _ESM2 | {"intermediate_size": 4 * config.dim}
    different = [
        f"{key} is {values.get(key)!r}, not {value!r}"
        for key, value in expected.items()
        if (values.get(key) or False) != value
    ]
    if different:
        older = values["position_embedding_type"] == "absolute"
        named = " but ESM-1b or ESM-1v, with learned positions" if older else ""
        raise InputError(f"is not ESM-2{named}: {'; '.join(different)}", path=path, hint=_EXPECTED)
    return config


def _read_weights(path: Path) -> dict[str, object]:
    if path.suffix == ".bin":
        state = load_tensors_only(path)
        if not isinstance(state, dict):
            raise InputError(f"holds {describe_content(state)}, not a state dict", path=path)
        return {str(name): tensor for name, tensor in state.items()}
    try:
        with safe_open(path, framework="pt") as handle:
            return {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
    except SafetensorError as error:
        refuse_foreign(path, "a safetensors file")
        raise InputError(
            f"is not a complete safetensors file ({error})", path=path, hint="download it again"
        ) from error


def _fair_esm_name(name: str) -> str:
    for pattern, replacement in _RENAMED:
        name = re.sub(pattern, replacement, name)
    return name


def _unused(name: str) -> bool:
    return _UNUSED.match(name) is not None


def _read_json_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        refuse_foreign(path, "JSON")
        raise InputError(f"is not JSON ({error})", path=path) from error
    if not isinstance(value, dict):
        raise InputError("is not a JSON object", path=path)
    return value
