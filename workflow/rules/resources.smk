"""What the rules ask for: memory, time, GPUs, tokens a step."""

import json
import math
from pathlib import Path

# What an embed job may take before its first step: imports, weights from a cold shared disk.
EMBED_START_MINUTES = 15


def grows_with_attempt(amount):
    """Make a resource function: `amount` times the attempt, so a killed job gets more."""

    def grown(wildcards, attempt):
        return amount * attempt

    return grown


def measured(name):
    """Return a value of the token budget, or None where it is not measured yet, or damaged."""
    return (read_sealed(here(TOKEN_BUDGET)) or {}).get(name)


def embed_minutes(wildcards, input, attempt):
    """Minutes for a shard: three times what its tokens take at the measured rate, and start-up.

    Three times, because the rate was measured on one node, and others may be slower. Where plan or
    rate are not there yet (a dry run before the first run), four hours.
    """
    planned = read_report(Path(input.plan).with_suffix(".json"))
    rate = measured("tokens_per_second")
    if not (planned and rate):
        return 240 * attempt
    tokens = planned["batches"] * planned["token_budget"]
    return math.ceil(EMBED_START_MINUTES + 3 * tokens / rate / 60) * attempt


def read_report(path):
    """Return a plan's report, or None where it is not there or damaged."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def model_megabytes(wildcards, attempt):
    """Memory of a job with the model, in MB: torch and CUDA, and the weights as they are on the disk
    and in the dtype that is computed in."""
    return math.ceil(6000 + 2 * file_megabytes(here(MODEL_WEIGHTS))) * attempt


def embed_megabytes(wildcards, input, attempt):
    """Memory of an embed job, in MB: that of the model, and of a shard's sequences, plan, vectors."""
    shard = file_megabytes(shard_fasta(wildcards)) + file_megabytes(input.plan)
    return model_megabytes(wildcards, attempt) + math.ceil(20 * shard) * attempt


def plan_megabytes(wildcards, attempt):
    """Memory of a plan, in MB: five times its shard, and Python's own."""
    return math.ceil(1000 + 5 * file_megabytes(shard_fasta(wildcards))) * attempt


def genes_megabytes(wildcards, threads, attempt):
    """Memory of finding genes, in MB: of each process, and what waits for its turn."""
    return (1000 + 600 * threads) * attempt


def file_megabytes(path):
    """The size of a file in MB; 0 where it is not there yet."""
    return Path(path).stat().st_size / 1e6 if Path(path).exists() else 0


def merge_megabytes(wildcards, input, attempt):
    """Memory of a merge, in MB: its own, and room for the embeddings in the page cache.

    Their rows are read in the order of the input, so from a disk each would be a read of its own;
    above 64 GB they have to be."""
    embeddings = sum(map(file_megabytes, input.embeddings))
    return math.ceil(4000 * attempt + min(embeddings, 64000))


def minutes_for(megabytes_a_minute):
    """Make a resource function: half an hour, and the inputs at this rate, times the attempt."""

    def minutes(wildcards, input, attempt):
        size = sum(map(file_megabytes, input))
        return math.ceil(30 + size / megabytes_a_minute) * attempt

    return minutes


def step_tokens(wildcards, attempt):
    """Tokens of one step on the device, halved at each attempt after the second.

    The second has as many as the first: most jobs that are repeated lost their node or were
    preempted, and with other steps a sum may round differently. Within an attempt, a step that runs
    out of memory is divided already.

    What was measured, where it was; Snakemake evaluates this once more just before the job starts,
    so the plan's budget stands in only where the job doesn't run (a dry run before the first run).
    """
    tokens = measured("tokens_per_step") or config["plan"]["token_budget"]
    return max(
        tokens // 2 ** max(attempt - 2, 0), config["plan"]["max_sequence_length"] + 2
    )


def gpus():
    """GPUs of a job that computes. On `auto` one is asked for, also where none turns out to be."""
    return 0 if config["embed"]["device"] == "cpu" else 1
