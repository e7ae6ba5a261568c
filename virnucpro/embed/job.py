"""A shard's work before it begins: its files, what is asked for, and whether these fit together."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import torch

from virnucpro import __version__
from virnucpro.data.dataset import SequenceDataset
from virnucpro.embed.budget import Budget
from virnucpro.embed.readout import Readout
from virnucpro.embed.receipt import ShardRequest
from virnucpro.embed.request import make_readout
from virnucpro.errors import InputError
from virnucpro.formats import EXTRA_ARRAYS, extra_path
from virnucpro.model.devices import DTYPES, device_name, dtype_name, select_device, select_dtype
from virnucpro.model.receipt import read_receipt
from virnucpro.plan.plan import Plan, read_plan

__all__ = ["EmbedOptions", "ShardFiles", "ShardJob", "prepare_job"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ShardFiles:
    """The files of one shard: what is read, and what is written."""

    shard: Path
    plan: Path
    weights: Path
    model_receipt: Path
    budget: Path
    embeddings: Path
    receipt: Path
    step_log: Path

    @property
    def extras(self) -> dict[str, Path]:
        """The arrays beside the embeddings that options may ask for, by their names in receipts."""
        return {name: extra_path(self.embeddings, name) for name in EXTRA_ARRAYS}


@dataclass(frozen=True)
class EmbedOptions:
    """What to compute and on what.

    Attributes:
        device: see `virnucpro.model.devices.select_device`.
        dtype: ``auto``, ``float32``, ``float16``, ``bfloat16`` or ``float8``.
        layers: representations to keep; negative ones count from the end.
        pooling: one of `virnucpro.formats.POOLINGS`; ``none`` writes the representations of
            all residues beside their mean.
        accept_float8_residues: let ``none`` go with float8, which single residues suffer from.
        pseudo_perplexity: one of `virnucpro.formats.PSEUDO_PERPLEXITIES`.
        output_dtype: ``float32`` or ``float16``, of the arrays.
        token_budget: no step is larger than this; None for what was measured.
        store: folders of stores, from which known rows are taken; the first gets new ones.
        store_accept: one of `virnucpro.store.request.ACCEPTED`.
    """

    device: str = "auto"
    dtype: str = "auto"
    layers: tuple[int, ...] = (-1,)
    pooling: str = "mean"
    accept_float8_residues: bool = False
    pseudo_perplexity: str = "none"
    output_dtype: str = "float32"
    token_budget: int | None = None
    store: tuple[Path, ...] = ()
    store_accept: str = "same"

    @property
    def extras(self) -> list[str]:
        """Names of the arrays that are asked for beside the embeddings."""
        requested = {
            "residues": self.pooling == "none",
            "pseudo_perplexity": self.pseudo_perplexity != "none",
        }
        return [name for name in EXTRA_ARRAYS if requested[name]]


@dataclass(frozen=True)
class ShardJob:
    """A shard's work, checked and ready to begin."""

    files: ShardFiles
    options: EmbedOptions
    plan: Plan
    items: SequenceDataset  # those of the plan, in its order
    readout: Readout
    device: torch.device
    dtype: torch.dtype  # that the model computes in
    vector_shape: tuple[int, int]  # [layers, dim] of a sequence
    request: ShardRequest


def prepare_job(
    files: ShardFiles, options: EmbedOptions, measured: Budget | None = None
) -> ShardJob:
    """Read plan, shard and receipt of the weights, check them, and choose device and dtype.

    Args:
        files: where things are.
        options: what to compute and on what.
        measured: take device and dtype from this, and look for no device.

    Raises:
        InputError: the options ask for a device, dtype or layer that is not there, or for residues
            in float8 without accepting them.
        DataError: plan or shard are damaged or do not belong together.
    """
    _check_residues(options)
    plan = read_plan(files.plan)
    items = SequenceDataset(files.shard, plan=plan)
    model = read_receipt(files.model_receipt)
    readout = make_readout(
        model,
        files.model_receipt,
        layers=options.layers,
        pooling=options.pooling,
        pseudo_perplexity=options.pseudo_perplexity,
        output_dtype=options.output_dtype,
    )
    if measured is not None:
        device, dtype = torch.device("cpu"), DTYPES[measured.dtype]
    else:
        device, why_device = select_device(options.device)
        dtype, why_dtype = select_dtype(options.dtype, device)
        logger.info("device: %s (%s)", device_name(device), why_device)
        logger.info("dtype: %s (%s)", dtype_name(dtype), why_dtype)
    request = ShardRequest(
        shard=files.shard.stem,
        plan_hash=plan.content_hash,
        sequences=plan.sequences,
        model=model.name,
        weights_sha256=model.weights_sha256,
        demo=model.demo,
        requested_layers=list(options.layers),
        pooling=options.pooling,
        pseudo_perplexity=options.pseudo_perplexity,
        compute_dtype=dtype_name(dtype),
        dtype=options.output_dtype,
        device=device_name(device) if measured is None else measured.device,
        versions={"virnucpro": __version__, "torch": torch.__version__},
    )
    shape = len(options.layers), model.dim
    return ShardJob(files, options, plan, items, readout, device, dtype, shape, request)


def _check_residues(options: EmbedOptions) -> None:
    """Refuse residues in float8, unless they are accepted."""
    coarse_residues = (options.dtype, options.pooling) == ("float8", "none")
    if coarse_residues and not options.accept_float8_residues:
        raise InputError(
            "float8 is for pooled vectors: single residues lose far more than their mean",
            hint="take float16, or accept it: embed.accept_float8_residues: true in the "
            "configuration, --accept-float8-residues true on the command line",
        )
