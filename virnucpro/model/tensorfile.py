"""safetensors files: written as a stream with reproducible bytes, read mapped into memory."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from virnucpro.errors import DataError
from virnucpro.files import atomic_path

__all__ = ["read_tensors", "write_tensors"]

_DTYPE_CODES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
_ALIGNMENT = 8


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file (https://github.com/huggingface/safetensors#format).

    Unlike ``safetensors.torch.save_file``, this writes one tensor after the other, so that a mapped
    source of any size passes through in constant memory, and the header's bytes do not depend on
    the library's version.

    Args:
        path: the final path; it gets its name when all bytes are on the disk.
        tensors: on the CPU, contiguous, float32, float16 or bfloat16.
        metadata: the header's free text.

    Raises:
        OSError: writing failed.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    offset = 0
    # The format wants no gaps and readers want aligned values: wider types go first.
    order = sorted(tensors, key=lambda name: -tensors[name].element_size())
    for name in order:
        tensor = tensors[name]
        end = offset + math.prod(tensor.shape) * tensor.element_size()
        header[name] = {
            "dtype": _DTYPE_CODES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    with atomic_path(path) as temporary, temporary.open("wb") as handle:
        handle.write(len(text).to_bytes(8, "little"))
        handle.write(text)
        for name in order:
            handle.write(tensors[name].contiguous().view(torch.uint8).numpy().data)


def read_tensors(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Read a safetensors file.

    Returns:
        The header's free text, and the tensors, mapped into memory.

    Raises:
        DataError: the file is missing or not a complete safetensors file.
    """
    if not path.is_file():
        raise DataError("is missing", path=path)
    try:
        with safe_open(path, framework="pt") as handle:
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
            return dict(handle.metadata() or {}), tensors
    except SafetensorError as error:
        raise DataError(f"is not a complete safetensors file ({error})", path=path) from error
