"""Products of float8 matrices on the tensor cores (compute capability 8.9 or newer)."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["float8_product"]


def float8_product(rows: tuple[Tensor, Tensor], weight: tuple[Tensor, Tensor]) -> Tensor:
    """Multiply scaled rows with a scaled weight; see `reference.float8_product`."""
    (x, x_scales), (w, w_scales) = rows, weight
    product: Tensor = torch._scaled_mm(
        x,
        w.t(),
        scale_a=x_scales,
        scale_b=w_scales.t(),
        out_dtype=torch.bfloat16,
        use_fast_accum=True,
    )
    return product
