"""Durable checkpoints of a shard that is being embedded, from which a killed job continues.

A checkpoint is a file with the values of some finished steps. It lies in a hidden directory beside
the shard's outputs, where Snakemake, which deletes the declared outputs of a job that failed,
leaves it alone. Checkpoints are written by a thread of their own, so that the device never waits
for a disk, and removed once the shard is complete.

A checkpoint is used again when its hash is right and it was made for the same request: the same
plan, weights, dtypes, layers, device and versions. It also fixes T, the tokens of a step, for the
rest of the shard: the batches, and so the bits, are then those of a run that was never disturbed,
whatever limit this attempt was started with.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from virnucpro.embed.step_log import StepRecord
from virnucpro.errors import DataError
from virnucpro.files import remove, write_bytes
from virnucpro.formats import parse

if TYPE_CHECKING:  # it imports torch, which `tokens_in_checkpoints` does without
    from virnucpro.embed.output import ShardOutput

__all__ = ["Checkpoints", "checkpoints_directory", "tokens_in_checkpoints"]

logger = logging.getLogger(__name__)

_SHARE = 0.01  # of the shard's tokens: what a kill may cost, with the step or two under way
_SECONDS = 1.0  # between two checkpoints at least; a shard of seconds needs none


@dataclass(frozen=True)
class _Checkpoint:
    """A checkpoint that was read and verified.

    Attributes:
        path: its file.
        tokens_per_step: T of its steps.
        steps: what was noted of each step.
        values: [items of all steps, layers, dim].
    """

    path: Path
    tokens_per_step: int
    steps: list[StepRecord]
    values: np.ndarray


def checkpoints_directory(embeddings: Path) -> Path:
    """Return the directory of the checkpoints of a shard, beside its array."""
    return embeddings.with_name(f".{embeddings.stem}.checkpoints")


def tokens_in_checkpoints(directory: Path) -> int:
    """Count the tokens of the steps that the checkpoints of a shard say they hold.

    Only the beginning of each is read, and its hash not checked, for a job may be writing and
    removing checkpoints meanwhile; one that cannot be read counts nothing.

    Args:
        directory: of the checkpoints; there are none where it is missing.
    """
    tokens: dict[int, int] = {}
    for path in sorted(directory.glob("*.checkpoint")):
        try:
            with path.open("rb") as handle:
                handle.readline()
                header = json.loads(handle.readline())
            tokens |= {int(step["number"]): int(step["tokens"]) for step in header["steps"]}
        except (OSError, ValueError, TypeError, KeyError):
            logger.debug("%s cannot be read", path)
    return sum(tokens.values())


class Checkpoints:
    """The checkpoints of one shard.

    Args:
        directory: where they are, or will be.
        request: everything that the values depend on, beside T; JSON.
        shape: of a value, [layers, dim].
        dtype: of the values, `ShardOutput.value_dtype`.

    Attributes:
        tokens_per_step: T of the checkpoints that were found; None where there are none.
    """

    def __init__(
        self,
        directory: Path,
        request: dict[str, Any],
        shape: tuple[int, int],
        dtype: np.dtype[Any],
    ) -> None:
        self._directory = directory
        self._request = json.loads(json.dumps(request))
        self._shape, self._dtype = shape, dtype
        first = next(self._read_all(), None)
        self.tokens_per_step = first.tokens_per_step if first else None

    def restore(self, output: ShardOutput, steps: Sequence[np.ndarray], tokens: int) -> list[int]:
        """Write what was found into the output.

        Args:
            output: the shard's output; nothing is in it yet.
            steps: for each step of the shard, the numbers of its items in the plan.
            tokens: T, the tokens of a step.

        Returns:
            The numbers of the steps that remain to be computed, in order.
        """
        done: set[int] = set()
        for checkpoint in self._read_all():
            fits = checkpoint.tokens_per_step == tokens and all(
                step.number < len(steps)
                and step.number not in done
                and np.array_equal(steps[step.number], step.items)
                for step in checkpoint.steps
            )
            if not fits:
                self._drop(checkpoint.path, "its steps are not this shard's")
                continue
            ends = np.cumsum([len(step.items) for step in checkpoint.steps])[:-1]
            for step, values in zip(
                checkpoint.steps, np.split(checkpoint.values, ends), strict=True
            ):
                output.take(step, values)
                done.add(step.number)
        if done:
            logger.info(
                "continuing at %d tokens a step; in checkpoints of an earlier run: %d of %d steps",
                *(tokens, len(done), len(steps)),
            )
        return [number for number in range(len(steps)) if number not in done]

    @contextlib.contextmanager
    def keep(
        self, output: ShardOutput, tokens_per_step: int, total_tokens: int
    ) -> Iterator[Callable[[StepRecord, np.ndarray], None]]:
        """Return a function that takes what `ShardOutput.store` gives of each step.

        A checkpoint is written now and then.

        However the block ends, by an error or a signal too, what is done is written.

        Args:
            output: the shard's output.
            tokens_per_step: T.
            total_tokens: of the whole shard.

        Raises:
            DataError: the folder of the outputs was deleted meanwhile.
        """
        pending: list[tuple[StepRecord, np.ndarray]] = []
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoints") as writer:

            def cut() -> Future[None]:
                steps = pending.copy()
                pending.clear()
                return writer.submit(self._write, steps, tokens_per_step)

            writing, last = writer.submit(lambda: None), time.monotonic()

            def take(step: StepRecord, values: np.ndarray) -> None:
                nonlocal writing, last
                pending.append((step, values))
                enough = sum(step.tokens for step, _ in pending) >= _SHARE * total_tokens
                if not enough or time.monotonic() - last < _SECONDS:
                    return
                if output.deleted:
                    raise DataError("the folder was deleted meanwhile", path=self._directory.parent)
                if writing.done():  # a slow disk gets fewer and larger checkpoints
                    writing.result()
                    writing, last = cut(), time.monotonic()

            try:
                yield take
            finally:
                if pending and not output.deleted:
                    cut().result()

    def _write(self, done: list[tuple[StepRecord, np.ndarray]], tokens_per_step: int) -> None:
        """Write a checkpoint. Where that fails, the run goes on: its own output is whole."""
        steps = [step for step, _ in done]
        header = {
            "request": self._request,
            "tokens_per_step": tokens_per_step,
            "steps": [asdict(step) for step in steps],
        }
        body = b"".join(values.tobytes() for _, values in done)
        body = json.dumps(header).encode() + b"\n" + body
        name = f"{steps[0].number:08d}-{steps[-1].number:08d}.checkpoint"
        try:
            write_bytes(
                self._directory / name, hashlib.sha256(body).hexdigest().encode() + b"\n" + body
            )
        except OSError as error:
            logger.warning("a checkpoint is not kept, a kill would cost its steps: %s", error)

    def _read_all(self) -> Iterator[_Checkpoint]:
        """Read the checkpoints one by one; those that cannot be used are removed."""
        for path in sorted(self._directory.glob("*.checkpoint")):
            try:
                yield self._read(path)
            except (OSError, ValueError, TypeError, KeyError, DataError) as error:
                self._drop(path, str(error))

    def _read(self, path: Path) -> _Checkpoint:
        """Read a checkpoint and verify it; every way in which it is not usable is an exception."""
        digest, _, body = path.read_bytes().partition(b"\n")
        if hashlib.sha256(body).hexdigest().encode() != digest:
            raise ValueError("it is damaged: its sha256 is another")
        text, _, values = body.partition(b"\n")
        header = json.loads(text)
        differing = [
            key
            for key in sorted(self._request.keys() | header["request"].keys())
            if self._request.get(key) != header["request"].get(key)
        ]
        if differing:
            raise ValueError(f"it was made with another {', '.join(differing)}")
        steps = [parse(StepRecord, step, path) for step in header["steps"]]
        array = np.frombuffer(values, self._dtype).reshape(-1, *self._shape)
        if len(array) != sum(len(step.items) for step in steps):
            raise ValueError("it has other items than it says")
        return _Checkpoint(path, int(header["tokens_per_step"]), steps, array)

    def _drop(self, path: Path, why: str) -> None:
        logger.warning("%s is not used, its steps are computed again: %s", path, why)
        remove(path)
