"""A small sample on disk, as the earlier steps write it, with every part open to damage."""

from __future__ import annotations

import hashlib
import json
import zlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from virnucpro.files import read_json, sha256_of, write_json
from virnucpro.formats import EMBED_FORMAT, SPLIT_FORMAT
from virnucpro.merge.ledger import QuarantineRow, write_quarantine
from virnucpro.merge.sample import MergeCounts, merge_sample
from virnucpro.plan.parameters import PlanParameters
from virnucpro.plan.plan import make_plan, read_plan, write_plan
from virnucpro.plan.report import efficiency_report, write_report
from virnucpro.sequences.alphabet import sequence_key
from virnucpro.sequences.manifest import (
    InputFile,
    Lengths,
    Manifest,
    RecordCounts,
    ShardEntry,
)
from virnucpro.sequences.outputs import RECORDS_SCHEMA

STEP_LOG = "step\titems\ttokens\tseconds\tpeak_memory_bytes\tnote\tcrc32\n"


def step_log_line(*cells: object) -> str:
    """A step's line with its checksum."""
    line = "\t".join(map(str, cells))
    return f"{line}\t{zlib.crc32(line.encode()):08x}\n"


@dataclass
class Sample:
    """Paths of a sample, and what its files should come to."""

    root: Path
    records_in: list[tuple[str, str, bytes]]
    shard_count: int = 1
    dim: int = 4
    layers: tuple[int, ...] = (6,)
    dtype: str = "float32"
    refused: list[str] = field(default_factory=list)
    failed: dict[bytes, tuple[str, str]] = field(default_factory=dict)
    max_sequence_length: int = 20
    long_sequences: str = "truncate"
    window_overlap: int = 0
    extras: tuple[str, ...] = ()
    receipt: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.shards_dir, self.plans_dir = self.root / "shards", self.root / "plan"
        self.embeddings_dir, self.records = self.root / "embeddings", self.root / "records.parquet"
        self.output, self.quarantine = self.root / "embeddings.h5ad", self.root / "quarantine.tsv"
        for directory in (self.shards_dir, self.plans_dir, self.embeddings_dir):
            directory.mkdir(parents=True)
        self.names = [f"{number:05d}" for number in range(self.shard_count)]
        self.members: list[list[bytes]] = [[] for _ in self.names]
        for residues in sorted({residues for *_, residues in self.records_in}, key=sequence_key):
            self.members[self.shard_of(residues)].append(residues)
        self._write_split()
        for number, name in enumerate(self.names):
            self._write_plan(name, self.members[number])
            self.write_embeddings(name, self.members[number])

    def shard_of(self, residues: bytes) -> int:
        return int.from_bytes(sequence_key(residues)[:8], "little") % self.shard_count

    def embedding(self, residues: bytes) -> np.ndarray:
        """[layers, dim], different for each sequence."""
        seed = int.from_bytes(sequence_key(residues)[:4], "little")
        values = np.random.default_rng(seed).normal(size=(len(self.layers), self.dim))
        return values.astype(self.dtype)

    def residues(self, residues: bytes) -> np.ndarray:
        """[kept residues, layers, dim], different for each sequence."""
        kept = len(residues)
        if self.long_sequences == "truncate":
            kept = min(kept, self.max_sequence_length)
        steps = np.arange(kept, dtype=self.dtype)[:, None, None]
        return (self.embedding(residues) + steps).astype(self.dtype)

    def perplexity(self, residues: bytes) -> np.float64:
        return np.float64(1 + abs(float(self.embedding(residues).flat[0])))

    def record_rows(self) -> list[dict[str, Any]]:
        return [
            {
                "id": name,
                "description": description,
                "length": len(residues),
                "key": sequence_key(residues),
                "shard": self.shard_of(residues),
                "replaced": residues.count(b"X"),
                "unknown": residues.count(b"X"),
                "normalised": b"X" in residues,
                "file": 0,
                "line": 2 * number + 1,
            }
            for number, (name, description, residues) in enumerate(self.records_in)
        ]

    def write_records(self, rows: list[dict[str, Any]]) -> None:
        pq.write_table(pa.Table.from_pylist(rows, schema=RECORDS_SCHEMA), self.records)
        manifest = self.shards_dir / "manifest.json"
        if manifest.exists():
            write_json(manifest, read_json(manifest) | {"records_sha256": sha256_of(self.records)})

    def _write_split(self) -> None:
        self.write_records(self.record_rows())
        line = 2 * len(self.records_in) + 1
        write_quarantine(
            self.shards_dir / "quarantine.tsv",
            (
                QuarantineRow(
                    sample="s1",
                    id=name,
                    file="in/a.fasta",
                    line=str(line + number),
                    length="0",
                    reason="empty",
                    detail="no residues",
                )
                for number, name in enumerate(self.refused)
            ),
        )
        accepted, distinct = len(self.records_in), sum(map(len, self.members))
        shards = [
            ShardEntry(name, len(members), sum(map(len, members)) + 2 * len(members), "cd" * 32)
            for name, members in zip(self.names, self.members, strict=True)
        ]
        manifest = Manifest(
            sample="s1",
            parameters={"shard_tokens": 1000, "input_type": "protein"},
            inputs=[InputFile("in/a.fasta", 9, "ab" * 32, accepted)],
            records=RecordCounts(
                read=accepted + len(self.refused),
                accepted=accepted,
                quarantined=len(self.refused),
                normalised=0,
                duplicates=accepted - distinct,
                renamed=0,
            ),
            quarantined={"empty": len(self.refused)} if self.refused else {},
            changes={},
            left_out={},
            sequences=distinct,
            residues=sum(shard.tokens - 2 * shard.sequences for shard in shards),
            tokens=sum(shard.tokens for shard in shards),
            lengths=Lengths(),
            shards=shards,
            records_sha256=sha256_of(self.records),
        )
        content = {"format": SPLIT_FORMAT, **asdict(manifest)}
        write_json(self.shards_dir / "manifest.json", content)

    def _write_plan(self, name: str, members: list[bytes]) -> None:
        lengths = np.array([len(residues) for residues in members], dtype=np.int64)
        plan = make_plan(
            [sequence_key(residues).hex() for residues in members],
            lengths,
            PlanParameters(64, self.max_sequence_length, self.long_sequences, self.window_overlap),
        )
        write_plan(plan, self.plans_dir / f"{name}.parquet")
        path = self.plans_dir / f"{name}.json"
        write_report(path, efficiency_report(name, plan, lengths))
        write_json(path, read_json(path))  # without a seal, for the tests change it

    def write_embeddings(self, name: str, members: list[bytes]) -> None:
        shape = (len(members), len(self.layers), self.dim)
        array = np.empty(shape, dtype=self.dtype)
        quarantined = []
        for row, residues in enumerate(members):
            array[row] = self.embedding(residues)
            if residues in self.failed:
                array[row] = np.nan
                reason, detail = self.failed[residues]
                key = sequence_key(residues).hex()
                quarantined.append({"row": row, "key": key, "reason": reason, "detail": detail})
        plan = read_plan(self.plans_dir / f"{name}.parquet")
        step_log = "".join(
            step_log_line(step, len(members), 50 - step, f"0.{step + 5}", 1000 + step, "")
            for step in range(plan.batches)
        )
        (self.embeddings_dir / f"{name}.steps.tsv").write_text(STEP_LOG + step_log)
        self.write_array(name, array)
        values = {
            "residues": [self.residues(residues) for residues in members],
            "pseudo_perplexity": [[self.perplexity(residues)] for residues in members],
        }
        for extra in self.extras:
            np.save(self.beside(name, extra), np.concatenate(values[extra]), allow_pickle=False)
        self.write_receipt(
            name,
            {
                "format": EMBED_FORMAT,
                "shard": name,
                "array_sha256": sha256_of(self.npy(name)),
                "extras": {extra: sha256_of(self.beside(name, extra)) for extra in self.extras},
                "shape": list(shape),
                "dtype": self.dtype,
                "plan_hash": plan.content_hash,
                "sequences": len(members),
                "weights_sha256": "cd" * 32,
                "model": "demo",
                "demo": True,
                "requested_layers": list(self.layers),
                "layers": list(self.layers),
                "pooling": "none" if "residues" in self.extras else "mean",
                "pseudo_perplexity": ("one-pass" if "pseudo_perplexity" in self.extras else "none"),
                "compute_dtype": "float32",
                "device": "cpu",
                "backend": "sdpa",
                "tokens_per_step": 64,
                "versions": {"virnucpro": "0.1.0", "torch": "2.13.0"},
                "quarantined": quarantined,
                "steps": plan.batches,
                "retries": 0,
                "recomputed_float32": 0,
                **self.receipt,
            },
        )

    def npy(self, name: str) -> Path:
        return self.embeddings_dir / f"{name}.npy"

    def beside(self, name: str, extra: str) -> Path:
        return self.embeddings_dir / f"{name}.{extra}.npy"

    def write_array(self, name: str, array: np.ndarray) -> None:
        np.save(self.npy(name), array, allow_pickle=False)

    def receipt_of(self, name: str) -> dict[str, Any]:
        return json.loads((self.embeddings_dir / f"{name}.json").read_text())

    def write_receipt(self, name: str, receipt: dict[str, Any]) -> None:
        write_json(self.embeddings_dir / f"{name}.json", receipt)

    def change_receipt(self, name: str, **changes: Any) -> None:
        self.write_receipt(name, {**self.receipt_of(name), **changes})

    def change_array(self, name: str, array: np.ndarray) -> None:
        """Replace an array, with a receipt that fits it."""
        self.write_array(name, array)
        digest = hashlib.sha256(self.npy(name).read_bytes()).hexdigest()
        self.change_receipt(
            name, array_sha256=digest, shape=list(array.shape), dtype=array.dtype.name
        )

    def merge(self, residues: Path | None = None, **exports: Path) -> MergeCounts:
        return merge_sample(
            shards_dir=self.shards_dir,
            records=self.records,
            plans_dir=self.plans_dir,
            embeddings_dir=self.embeddings_dir,
            output=self.output,
            quarantine=self.quarantine,
            residues=residues,
            exports={kind.replace("_", "-"): target for kind, target in exports.items()},
        )


LETTERS = np.frombuffer(b"LAGVSERTIDPKQNFYMHWC", dtype=np.uint8)


def random_records(count: int, *, seed: int = 0) -> list[tuple[str, str, bytes]]:
    """Records of 1 to 40 residues, of which some are the same sequence."""
    rng = np.random.default_rng(seed)
    pool = [rng.choice(LETTERS, size=rng.integers(1, 41)).tobytes() for _ in range(count * 3 // 4)]
    return [
        (f"p{number}", f"protein {number}", pool[rng.integers(len(pool))])
        for number in range(count)
    ]
