"""The receipt of converted weights: what they are, where they are from, and their hash."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from virnucpro.errors import DataError
from virnucpro.files import read_json, write_json
from virnucpro.formats import MODEL_FORMAT, check_format
from virnucpro.model.config import ModelConfig

__all__ = ["Receipt", "read_receipt", "write_receipt"]


@dataclass(frozen=True)
class Receipt:
    """What is known of a converted file of weights.

    Attributes:
        name: the model.
        source: the user's word for it, as given.
        source_sha256: hash of what it was converted from.
        weights_sha256: hash of the converted file.
        layers: transformer layers.
        dim: dimension of a token's representation.
        heads: attention heads of a layer.
        parameters: trained numbers in the file.
        dtype: of the tensors: ``float32``, ``float16`` or ``bfloat16``.
        has_lm_head: whether the language-model head is in the file.
        demo: whether the weights are random, so that nothing made with them means anything.
    """

    name: str
    source: str
    source_sha256: str
    weights_sha256: str
    layers: int
    dim: int
    heads: int
    parameters: int
    dtype: str
    has_lm_head: bool
    demo: bool

    @property
    def config(self) -> ModelConfig:
        """The model's shape."""
        return ModelConfig(self.name, self.layers, self.dim, self.heads)

    def to_json(self) -> dict[str, Any]:
        """Return the receipt as it stands in its file."""
        return {"format": MODEL_FORMAT, **asdict(self)}


def write_receipt(path: Path, receipt: Receipt) -> None:
    """Write a receipt as one whole."""
    write_json(path, receipt.to_json(), sealed=True)


def read_receipt(path: Path) -> Receipt:
    """Read a receipt and check its form.

    Raises:
        DataError: it is missing, not JSON, or not a receipt of weights.
        InputError: it has another format number.
    """
    content = read_json(path)
    check_format("model receipt", content.pop("format", None), MODEL_FORMAT, path=path)
    types = {"str": str, "int": int, "bool": bool}
    expected = {field.name: types[str(field.type)] for field in fields(Receipt)}
    wrong = sorted(
        name
        for name in expected.keys() | content.keys()
        # `type` and not `isinstance`: True is no number of layers
        if name not in expected or type(content.get(name)) is not expected[name]
    )
    if wrong:
        raise DataError(f"is not a receipt of weights: see {', '.join(wrong)}", path=path)
    return Receipt(**content)
