"""Input functions of the rules: which files a job waits for."""

import json
from pathlib import Path

# The plans that were there when the workflow was read.
EARLIER_PLANS = {
    str(path)
    for sample in SAMPLES
    for path in Path(here(PLAN.format(sample=sample, shard=""))).parent.glob(
        "*.parquet"
    )
}


def sample_fastas(wildcards):
    """The FASTA files of a sample, in the order of the sheet."""
    if workflow.is_main_process:
        check_settings()
    return [not_ours(path) for path in SAMPLES[wildcards.sample]]


def contigs_fasta(wildcards):
    """The file of contigs with a number, in the order of the sheet."""
    return SAMPLES[wildcards.sample][int(wildcards.number)]


def genes_of(suffix):
    """Make an input function: the files of a sample's genes with a suffix; none without contigs."""

    def files(wildcards):
        sample = wildcards.sample
        return [
            GENES.format(sample=sample, genes=GENES_IDS[sample], number=number) + suffix
            for number in range(len(SAMPLES[sample]) if HAS_CONTIGS else 0)
        ]

    return files


def split_of(sample):
    """The files of a sample's split; what asks for them waits for the checkpoint."""
    return checkpoints.split.get(sample=sample, split=SPLIT_IDS[sample]).output


def split_manifest(wildcards):
    """The file that lists a sample's shards."""
    return split_of(wildcards.sample).manifest


def split_records(wildcards):
    """The table of a sample's accepted records."""
    return split_of(wildcards.sample).records


def its_split(wildcards):
    """Nothing, once a sample is split: the same shard may be of another split, too."""
    split_of(wildcards.sample)
    return []


def shard_fasta(wildcards):
    """The FASTA file of a shard, whose name stands for its content."""
    split = SPLIT.format(sample=wildcards.sample, split=SPLIT_IDS[wildcards.sample])
    return here(f"{split}/shards/{wildcards.shard}.fasta")


def shards_of(sample):
    """The names of a sample's shards, known once the checkpoint has run."""
    manifest = json.loads(Path(split_of(sample).manifest).read_text())
    return [shard["name"] for shard in manifest["shards"]]


def of_all_shards(pattern):
    """Make an input function that fills `pattern` for every shard of a sample."""

    def files(wildcards):
        return expand(
            pattern, sample=wildcards.sample, shard=shards_of(wildcards.sample)
        )

    return files


def shard_plan(wildcards):
    """The plan of a shard; one that was there before this run is no reason to embed again.

    `ancient` does not do for one that is made in this run: while a checkpoint is dealt with, Snakemake
    9.27 forgets the jobs behind a running job whose outputs are there already and `ancient`.
    """
    path = f"{PLAN}.parquet".format(**wildcards)
    return ancient(path) if here(path) in EARLIER_PLANS else path


def model_sources(wildcards):
    """The local files that the model is made from."""
    return [not_ours(path) for path in model_files()]


def fetched_model(wildcards):
    """Nothing, once the weights are there: weights that are fetched again are the same weights."""
    checkpoints.fetch_model.get(model=MODEL)
    return []


def measured_budget(wildcards):
    """Nothing, once the token budget is measured: which file that is must not matter to a job.

    With another device another budget is measured, but what is embedded stays.
    """
    checkpoints.token_budget.get()
    return []
