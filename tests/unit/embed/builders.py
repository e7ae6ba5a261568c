import numpy as np
import torch

from virnucpro.model.config import expected_tensors, lm_head_tensors


def random_state(config, seed=0):
    """Canonical weights of a model with its head, random and of the size of trained ones."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in (expected_tensors(config) | lm_head_tensors(config)).items():
        noise = torch.randn(shape, generator=generator)
        if name.endswith("layer_norm.weight") or name.endswith("after.weight"):
            state[name] = 1 + 0.1 * noise
        elif len(shape) == 1:
            state[name] = 0.1 * noise
        else:
            state[name] = noise / shape[-1] ** 0.5
    return state


def collate(sequences):
    """A packed batch of token tensors, as the collator gives it."""
    lengths = [len(s) for s in sequences]
    bounds = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return {
        "sequence_ids": [f"s{i}" for i in range(len(sequences))],
        "input_ids": torch.cat(sequences),
        "position_ids": torch.cat([torch.arange(n, dtype=torch.int32) for n in lengths]),
        "cu_seqlens": torch.from_numpy(bounds),
        "max_seqlen": max(lengths),
        "num_sequences": len(sequences),
    }


def random_sequences(count, seed=0, longest=200):
    random = np.random.default_rng(seed)
    return [
        torch.from_numpy(np.concatenate([[0], random.integers(4, 24, size=n), [2]]))
        for n in random.integers(1, longest, size=count)
    ]


def random_proteins(count, longest=150, seed=0):
    random = np.random.default_rng(seed)
    letters = np.frombuffer(b"ACDEFGHIKLMNPQRSTVWYX", dtype=np.uint8)
    return [random.choice(letters, n).tobytes() for n in random.integers(1, longest, size=count)]
