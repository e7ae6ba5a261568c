"""Small stores to be read, damaged and compacted."""

import hashlib

import numpy as np

from virnucpro.store.request import Request
from virnucpro.store.store import Store, segment_paths

DIM = 8


def make_request(**changes):
    facts = {
        "weights_sha256": "ab" * 32,
        "layers": [6],
        "pooling": "mean",
        "pseudo_perplexity": "none",
        "compute_dtype": "float32",
        "output_dtype": "float32",
        "max_sequence_length": 1022,
        "long_sequences": "truncate",
        "window_overlap": 0,
        "tokens_per_step": 4096,
        "device": "cpu",
        "threads": 1,
        "backend": "sdpa",
        "torch": "2.13.0",
        "model": "demo",
    }
    return Request(**(facts | changes))


REQUEST = make_request()
SCORED = make_request(pseudo_perplexity="one-pass", layers=[3, 6])


def make_keys(numbers):
    """The keys of sequences that have numbers, increasing, [n, 16]."""
    keys = sorted(hashlib.blake2b(b"%d" % n, digest_size=16).digest() for n in set(numbers))
    return np.frombuffer(b"".join(keys), np.uint8).reshape(-1, 16)


def values_of(keys, request=REQUEST):
    """The arrays of some keys: each row is made of its key and the request alone."""
    seed = int(request.id[:8], 16)
    seeds = np.ascontiguousarray(keys).view("<u8").reshape(-1, 2)[:, 0]
    count = len(request.layers) * DIM
    mixed = seeds[:, None] * np.arange(1, 2 * count + 1, 2, dtype=np.uint64) + np.uint64(seed)
    rows = (mixed >> np.uint64(54)).astype(request.output_dtype)
    arrays = {"embeddings": rows.reshape(len(keys), len(request.layers), DIM)}
    if request.pseudo_perplexity != "none":
        arrays["pseudo_perplexity"] = rows[:, 0].astype(np.float64) / 7
    return arrays


def add(store, numbers, request=REQUEST):
    keys = make_keys(numbers)
    return store.add(request, keys, values_of(keys, request))


def empty_like(keys, request=REQUEST):
    return {name: np.full_like(a, np.nan) for name, a in values_of(keys, request).items()}


def taken(store, numbers, request=REQUEST):
    """Look up and fill; gives which keys were filled, after checking each value to the bit."""
    keys = make_keys(numbers)
    arrays, expected = empty_like(keys, request), values_of(keys, request)
    result = store.fill(store.look_up(request, keys), arrays)
    for name, array in arrays.items():
        assert array[result.filled].tobytes() == expected[name][result.filled].tobytes()
        assert np.isnan(array[~result.filled]).all()
    return result.filled


def segments_in(directory):
    return list(segment_paths(directory))


def fresh(*directories, **options):
    """A store as another process opens it."""
    return Store(directories, **options)
