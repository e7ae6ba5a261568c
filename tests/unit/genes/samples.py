"""A sample of files of genes: split and plans by the steps themselves, embeddings made up."""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.unit.samples import Sample
from virnucpro.genes.read import read_genes
from virnucpro.merge.sample import merge_sample
from virnucpro.plan.build import plan_shard
from virnucpro.plan.parameters import PlanParameters
from virnucpro.sequences.manifest import SplitParameters
from virnucpro.sequences.shards import read_shard
from virnucpro.sequences.split import split


@dataclass
class GeneSample(Sample):
    """Paths of a sample of genes."""

    records_in: list[tuple[str, str, bytes]] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)  # of split

    def _write_split(self) -> None:
        self.shards_dir.rmdir()
        split(
            self.files,
            sample="s1",
            shards_dir=self.shards_dir,
            records=self.records,
            parameters=SplitParameters(
                **({"shard_tokens": 400, "input_type": "genes"} | self.options)
            ),
            reader=read_genes,
        )
        shards = sorted(self.shards_dir.glob("*.fasta"))
        self.names = [path.stem for path in shards]
        self.members = [read_shard(path).residues for path in shards]

    def _write_plan(self, name: str, members: list[bytes]) -> None:
        plan_shard(
            self.shards_dir / f"{name}.fasta",
            self.plans_dir / f"{name}.parquet",
            self.plans_dir / f"{name}.json",
            PlanParameters(64, self.max_sequence_length),
        )


class ContigSample(GeneSample):
    """A sample whose genes were found on contigs."""

    @property
    def prefixes(self) -> list[Path]:
        return [path.with_name(path.name.removesuffix(".faa.gz")) for path in self.files]

    def merge_contigs(self, **options):
        return merge_sample(
            shards_dir=self.shards_dir,
            records=self.records,
            plans_dir=self.plans_dir,
            embeddings_dir=self.embeddings_dir,
            output=self.output,
            quarantine=self.quarantine,
            genes=self.prefixes,
            contigs=self.root / "contigs.tsv",
            contig_means=self.root / "contigs.h5ad",
            **options,
        )

    def table(self) -> list[dict[str, str]]:
        with (self.root / "contigs.tsv").open(newline="") as handle:
            return list(csv.DictReader(handle, delimiter="\t"))
