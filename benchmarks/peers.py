"""The programs that a user might take instead, behind one interface, and what to feed them.

All of them get the same sequences and the same random weights. Each does what its own documents
recommend, and its best case is measured: padded peers get sequences sorted by length, packed peers
get full bins, and tokens are made beforehand, so that no peer's tokeniser is timed. Only fair-esm
in float32 is run as its ``scripts/extract.py`` does it, from strings.
"""

from __future__ import annotations

import datetime
import importlib.machinery
import importlib.metadata
import platform
import shlex
import sys
import types
from collections.abc import Iterable, Iterator, Sequence
from copy import deepcopy
from typing import Any, NamedTuple, Protocol

import esm
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from virnucpro.data.packing import first_fit_decreasing
from virnucpro.model.config import KNOWN_MODELS, ModelConfig

MODELS = {name.split("_")[2]: config for name, config in KNOWN_MODELS.items() if "_t" in name}
EXTRACT_TOKENS = 4096  # the default of extract.py
LONGEST = 1022  # residues: what ESM-2 was trained on, and what extract.py cuts to
_DROPOUT_SCALE = 1 - 0.15 * 0.8  # fair-esm's, of the embeddings; esm-efficient has it in weights


class Batch(NamedTuple):
    """Sequences that are computed together: their numbers, and what the program is given."""

    index: np.ndarray
    payload: Any


class Runner(Protocol):
    """A program with its model on the device."""

    def batches(self, index: np.ndarray) -> list[Batch]:
        """Put some of the sequences into batches; not timed."""

    def embed(self, batches: Sequence[Batch]) -> Iterator[Tensor]:
        """Compute batches; for each its pooled representations on the CPU, [sequences, dim]."""


class NotInstalledError(Exception):
    """A peer's package is not there."""


def random_proteins(count: int, seed: int = 0) -> list[str]:
    """Draw proteins: lengths log-normal, 20 to 1,022, letters uniform from the 20 residues."""
    random = np.random.default_rng(seed)
    lengths = random.lognormal(5.45, 0.75, count).clip(20, LONGEST).astype(int)
    letters = np.frombuffer(b"ACDEFGHIKLMNPQRSTVWY", np.uint8)
    return [letters[random.integers(0, 20, n)].tobytes().decode() for n in lengths]


def token_counts(sequences: Iterable[str]) -> np.ndarray:
    """Count tokens, BOS and EOS included, [sequences] int64."""
    return np.array([len(sequence) + 2 for sequence in sequences], np.int64)


def random_fair_esm(config: ModelConfig, device: torch.device, seed: int = 0) -> nn.Module:
    """Make fair-esm's model with its own random weights, float32, on the device from the start."""
    torch.manual_seed(seed)
    with torch.device(device):
        model = esm.ESM2(config.layers, config.dim, config.heads, "ESM-1b", token_dropout=True)
    return model.eval().requires_grad_(False)


def sorted_batches(tokens: np.ndarray, budget: int) -> list[np.ndarray]:
    """Batch sequences for padding as fair-esm's ``FastaBatchedDataset.get_batch_indices`` does."""
    order = np.argsort(tokens, kind="stable")
    batches, first = [], 0
    for end, longest in enumerate(tokens[order].tolist()):
        if longest * (end - first + 1) > budget and end > first:
            batches.append(order[first:end])
            first = end
    return [*batches, order[first:]]


def full_bins(tokens: np.ndarray, budget: int) -> list[np.ndarray]:
    """Pack sequences into bins without padding, First-Fit Decreasing."""
    order, bins = first_fit_decreasing(tokens, budget)
    return np.split(order, np.flatnonzero(np.diff(bins)) + 1)


def describe_run(device: torch.device) -> list[str]:
    """Say what was run where and when, for the top of a report."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()
    packages = ("torch", "triton", "fair-esm", "transformers", "esm-efficient", "flash_attn")
    found = {package: _version(package) for package in packages}
    versions = ", ".join(f"{package} {version or 'absent'}" for package, version in found.items())
    cuda = f", CUDA {torch.version.cuda}" if device.type == "cuda" else ""
    return [
        f"device: {name}",
        f"versions: Python {platform.python_version()}, {versions}{cuda}",
        f"command: python {shlex.join(sys.argv)}",
        f"date: {datetime.datetime.now(datetime.UTC).date().isoformat()}",
    ]


def _cpu_name() -> str:
    return f"CPU, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


class _Prepared:
    """The sequences as tokens, for the peers whose tokeniser is not timed."""

    def __init__(self, sequences: Sequence[str], device: torch.device) -> None:
        alphabet = esm.data.Alphabet.from_architecture("ESM-1b")
        self.sequences, self.device = sequences, device
        self.counts = token_counts(sequences)
        self.converter = alphabet.get_batch_converter()
        self._table = np.full(256, alphabet.unk_idx, np.int64)
        for letter, number in alphabet.tok_to_idx.items():
            if len(letter) == 1:
                self._table[ord(letter)] = number
        self._ends = alphabet.cls_idx, alphabet.eos_idx
        self.padding = alphabet.padding_idx

    def tokens(self, number: int) -> np.ndarray:
        letters = np.frombuffer(self.sequences[number].encode(), np.uint8)
        return np.concatenate([self._ends[:1], self._table[letters], self._ends[1:]])

    def padded(self, index: np.ndarray) -> Tensor:
        """Give [sequences, longest] int64, padded."""
        tokens = torch.full((len(index), int(self.counts[index].max())), self.padding)
        for row, number in enumerate(index):
            tokens[row, : self.counts[number]] = torch.from_numpy(self.tokens(number))
        return tokens

    def packed(self, index: np.ndarray) -> tuple[Tensor, Tensor, Tensor, int]:
        """Give tokens and positions [T] int64, bounds [B+1] int32, and the longest."""
        counts = self.counts[index]
        tokens = torch.from_numpy(np.concatenate([self.tokens(number) for number in index]))
        positions = torch.cat([torch.arange(count) for count in counts.tolist()])
        bounds = torch.from_numpy(np.concatenate([[0], np.cumsum(counts)]).astype(np.int32))
        return tokens, positions, bounds, int(counts.max())


def _mean_of_padded(hidden: Tensor, tokens: Tensor, padding: int) -> Tensor:
    """Average over residues of padded rows, [B, S, dim] to [B, dim] float32, on the device."""
    counts = (tokens != padding).sum(dim=1)
    column = torch.arange(tokens.shape[1], device=tokens.device)
    residue = (column >= 1) & (column < (counts - 1).unsqueeze(1))
    total = torch.bmm(residue.float().unsqueeze(1), hidden.float()).squeeze(1)
    return total / (counts - 2).unsqueeze(1)


def _mean_of_packed(hidden: Tensor, bounds: Tensor) -> Tensor:
    """Average over residues of packed rows, [T, dim] to [B, dim] float32, on the device."""
    counts = bounds.diff().long()
    one = torch.ones_like(counts)
    segments = torch.stack([one, counts - 2, one], dim=1).flatten()
    return torch.segment_reduce(hidden.float(), "mean", lengths=segments, unsafe=True)[1::3]


class _Peer:
    """A model, the sequences, and the tokens of a batch."""

    def __init__(
        self, model: nn.Module, sequences: Sequence[str], device: torch.device, budget: int
    ) -> None:
        self.model, self.budget = model, budget
        self.data = _Prepared(sequences, device)


class _Padded(_Peer):
    def batches(self, index: np.ndarray) -> list[Batch]:
        """Batch sorted by length; the payload is padded tokens."""
        parts = sorted_batches(self.data.counts[index], self.budget)
        return [Batch(index[part], self.data.padded(index[part])) for part in parts]


class _Packed(_Peer):
    def batches(self, index: np.ndarray) -> list[Batch]:
        """Batch into full bins; the payload is packed tokens."""
        parts = full_bins(self.data.counts[index], self.budget)
        return [Batch(index[part], self.data.packed(index[part])) for part in parts]


class FairEsm(_Peer):
    """fair-esm as ``scripts/extract.py`` runs it: float32, whole representations to the CPU."""

    def batches(self, index: np.ndarray) -> list[Batch]:
        """Batch as extract.py does, sorted by length; the payload is labels and strings."""
        return [
            Batch(index[part], [(str(i), self.data.sequences[i]) for i in index[part]])
            for part in sorted_batches(self.data.counts[index] - 1, self.budget)  # it adds 1, not 2
        ]

    @torch.inference_mode()
    def embed(self, batches: Sequence[Batch]) -> Iterator[Tensor]:
        """Compute from strings; the means are taken on the CPU."""
        for batch in batches:
            _, strings, tokens = self.data.converter(batch.payload)
            representations = extract_batch(self.model, tokens.to(self.data.device))
            yield torch.stack(
                [
                    rows[1 : len(s) + 1].mean(0)
                    for rows, s in zip(representations, strings, strict=True)
                ]
            )


def extract_batch(model: nn.Module, tokens: Tensor) -> Tensor:
    """Compute what extract.py does with a batch: [B, S, dim] of the last layer on the CPU."""
    out = model(tokens, repr_layers=[model.num_layers], return_contacts=False)
    out["logits"].to("cpu")  # extract.py copies them too, and drops them
    return out["representations"][model.num_layers].to("cpu")


class FairEsmHalf(_Padded):
    """fair-esm's model in float16 with larger batches, pooled on the device."""

    def __init__(self, source: nn.Module, *given: Any) -> None:
        model = deepcopy(source).half()
        for module in model.modules():
            if hasattr(module, "_seq_len_cached"):  # the source's rotary tables, in float32
                module._seq_len_cached = None
        super().__init__(model, *given)

    @torch.inference_mode()
    def embed(self, batches: Sequence[Batch]) -> Iterator[Tensor]:
        """Compute from tokens."""
        last = self.model.num_layers
        for batch in batches:
            tokens = batch.payload.to(self.data.device)
            hidden = self.model(tokens, repr_layers=[last])["representations"][last]
            yield _mean_of_padded(hidden, tokens, self.data.padding).cpu()


class HuggingFace(_Padded):
    """transformers' EsmModel with scaled-dot-product attention, sorted and padded."""

    def __init__(
        self,
        source: nn.Module,
        sequences: Sequence[str],
        device: torch.device,
        budget: int,
        *,
        dtype: torch.dtype = torch.bfloat16,
        compiled: bool = False,
    ) -> None:
        model = _hugging_face_model(source, device, dtype, "sdpa")
        super().__init__(model, sequences, device, budget)
        if compiled:
            torch._dynamo.reset()
            for layer in model.encoder.layer:  # layer by layer: one compilation serves all
                layer.compile(dynamic=True)

    @torch.inference_mode()
    def embed(self, batches: Sequence[Batch]) -> Iterator[Tensor]:
        """Compute from tokens."""
        for batch in batches:
            tokens = batch.payload.to(self.data.device)
            mask = tokens != self.data.padding
            hidden = self.model(tokens, attention_mask=mask).last_hidden_state
            yield _mean_of_padded(hidden, tokens, self.data.padding).cpu()


class HuggingFacePacked(_Packed):
    """transformers' EsmModel on packed tokens, its attention replaced by torch's varlen_attn."""

    def __init__(
        self, source: nn.Module, sequences: Sequence[str], device: torch.device, budget: int
    ) -> None:
        model = _hugging_face_model(source, device, torch.bfloat16, "packed_varlen")
        super().__init__(model, sequences, device, budget)

    @torch.inference_mode()
    def embed(self, batches: Sequence[Batch]) -> Iterator[Tensor]:
        """Compute from tokens."""
        for batch in batches:
            tokens, positions, bounds = (x.to(self.data.device) for x in batch.payload[:3])
            hidden = self.model(
                tokens.unsqueeze(0),
                position_ids=positions.unsqueeze(0),
                bounds=bounds,
                longest=batch.payload[3],
            ).last_hidden_state[0]
            yield _mean_of_packed(hidden, bounds).cpu()


def _hugging_face_model(
    source: nn.Module, device: torch.device, dtype: torch.dtype, attention: str
) -> nn.Module:
    """Make transformers' model with the source's weights; rotary frequencies stay float32."""
    try:
        from transformers import AttentionInterface, EsmConfig, EsmModel
    except ImportError as error:
        raise NotInstalledError("transformers") from error
    AttentionInterface.register("packed_varlen", _hugging_face_attention)
    config = EsmConfig(
        vocab_size=33,
        mask_token_id=32,
        pad_token_id=1,
        hidden_size=source.embed_dim,
        num_hidden_layers=source.num_layers,
        num_attention_heads=source.attention_heads,
        intermediate_size=4 * source.embed_dim,
        max_position_embeddings=1026,
        position_embedding_type="rotary",
        emb_layer_norm_before=False,
        token_dropout=True,
        layer_norm_eps=1e-5,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    config._attn_implementation = "sdpa"
    with torch.device(device):
        model = EsmModel(config, add_pooling_layer=False)
    report = model.load_state_dict(_hugging_face_names(source.state_dict()), strict=False)
    assert not report.unexpected_keys, report.unexpected_keys
    assert not [k for k in report.missing_keys if "layer." in k and "inv_freq" not in k]
    frequencies = {n: b for n, b in model.named_buffers() if n.endswith("inv_freq")}
    model = model.to(dtype).eval().requires_grad_(False)
    for name, buffer in frequencies.items():  # as from_pretrained(dtype=...) leaves them
        model.get_submodule(name.rpartition(".")[0])._buffers["inv_freq"] = buffer
    model.set_attn_implementation(attention)
    return model


def _hugging_face_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **given: Any,
) -> tuple[Tensor, None]:
    """Attend in transformers' attention interface: [1, H, T, D] in, [1, T, H, D] out."""
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    return _varlen(q, k, v, given["bounds"], given["longest"], scaling).unsqueeze(0), None


_HUGGING_FACE = {
    "self_attn.q_proj": "attention.self.query",
    "self_attn.k_proj": "attention.self.key",
    "self_attn.v_proj": "attention.self.value",
    "self_attn.out_proj": "attention.output.dense",
    "self_attn_layer_norm": "attention.LayerNorm",
    "fc1": "intermediate.dense",
    "fc2": "output.dense",
    "final_layer_norm": "LayerNorm",
}
_ESM_EFFICIENT = {
    "self_attn.q_proj": "self_attn.q",
    "self_attn.k_proj": "self_attn.k",
    "self_attn.v_proj": "self_attn.v",
    "self_attn.out_proj": "self_attn.out",
    "self_attn_layer_norm": "self_attn.norm",
    "fc1": "final.1",
    "fc2": "final.3",
    "final_layer_norm": "final.0",
}


def _layer_names(state: dict[str, Tensor], names: dict[str, str], prefix: str) -> dict[str, Tensor]:
    """Rename the tensors of the layers from fair-esm's names."""
    renamed = {}
    for name, tensor in state.items():
        if name.startswith("layers.") and "rot_emb" not in name:
            _, layer, inner = name.split(".", 2)
            module, _, kind = inner.rpartition(".")
            renamed[f"{prefix}.{layer}.{names[module]}.{kind}"] = tensor
    return renamed


def _hugging_face_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        "embeddings.word_embeddings.weight": state["embed_tokens.weight"],
        "encoder.emb_layer_norm_after.weight": state["emb_layer_norm_after.weight"],
        "encoder.emb_layer_norm_after.bias": state["emb_layer_norm_after.bias"],
        **_layer_names(state, _HUGGING_FACE, "encoder.layer"),
    }


def _varlen(
    q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, longest: int, scale: float | None = None
) -> Tensor:
    """Attend within packed sequences, [T, H, D]: torch's kernel, on a CPU a call a sequence."""
    if q.is_cuda:
        from torch.nn.attention.varlen import varlen_attn

        return varlen_attn(q, k, v, bounds, bounds, longest, longest, scale=scale)
    spans = bounds.diff().tolist()
    parts = zip(*(x.transpose(0, 1).split(spans, dim=1) for x in (q, k, v)), strict=True)
    attended = [F.scaled_dot_product_attention(*part, scale=scale) for part in parts]
    return torch.cat(attended, dim=1).transpose(0, 1)


class EsmEfficient(_Packed):
    """esm-efficient (package ``esme``) on packed tokens, bfloat16 as it ships."""

    def __init__(
        self, source: nn.Module, sequences: Sequence[str], device: torch.device, budget: int
    ) -> None:
        network = _import_esme()
        with torch.device(device):
            model = network(source.num_layers, source.embed_dim, source.attention_heads)
        state = source.state_dict()
        names = _layer_names(state, _ESM_EFFICIENT, "layers")
        names["embed_tokens.weight"] = state["embed_tokens.weight"] * _DROPOUT_SCALE
        for kind in ("weight", "bias"):
            names[f"emb_layer_norm_after.{kind}"] = state[f"emb_layer_norm_after.{kind}"]
        report = model.load_state_dict(names, strict=False)
        assert not report.unexpected_keys, report.unexpected_keys
        assert all(key.startswith("lm_head.") for key in report.missing_keys)
        super().__init__(model.eval().requires_grad_(False), sequences, device, budget)

    @torch.inference_mode()
    def embed(self, batches: Sequence[Batch]) -> Iterator[Tensor]:
        """Compute from tokens."""
        for batch in batches:
            tokens, bounds = (batch.payload[i].to(self.data.device) for i in (0, 2))
            hidden = self.model.forward_representation(tokens, (bounds, batch.payload[3]))
            yield _mean_of_packed(hidden, bounds).cpu()


def flash_attention_is_there() -> bool:
    """Say whether esm-efficient has the package that it is made for."""
    return _version("flash_attn") is not None


def _import_esme() -> type[nn.Module]:
    """Import esm-efficient's ESM2; where flash_attn is not there, `_varlen` serves for it."""
    substitutes = {} if flash_attention_is_there() else _flash_attention_substitute()
    sys.modules.update(substitutes)
    try:
        from esme.esm import ESM2
    except ImportError as error:
        raise NotInstalledError(error.name or "esm-efficient") from error
    finally:
        for name in substitutes:
            del sys.modules[name]
    return ESM2


def _flash_attention_substitute() -> dict[str, types.ModuleType]:
    """Give modules with the names that esm-efficient imports from flash_attn."""
    package = types.ModuleType("flash_attn")
    padding = types.ModuleType("flash_attn.bert_padding")
    for module in (package, padding):
        module.__spec__ = importlib.machinery.ModuleSpec(module.__name__, None)
    padding.pad_input = padding.unpad_input = None  # for padded input, which is not given
    package.bert_padding = padding

    def flash_attn_varlen_func(q: Tensor, k: Tensor, v: Tensor, **given: Any) -> Tensor:
        assert not given["causal"]
        assert given["dropout_p"] == 0
        return _varlen(q, k, v, given["cu_seqlens_q"], given["max_seqlen_q"])

    package.flash_attn_varlen_func = flash_attn_varlen_func
    return {"flash_attn": package, "flash_attn.bert_padding": padding}
