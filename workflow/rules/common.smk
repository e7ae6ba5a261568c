"""Input functions and params of the rules."""

import json
import os
from pathlib import Path

# The plans that were there when the workflow was read.
EARLIER_PLANS = {
    str(path)
    for sample in SAMPLES
    for path in Path(PLAN.format(sample=sample, shard="")).parent.glob("*.parquet")
}

# ---- input functions ----------------------------------------------------------------------------


def sample_fastas(wildcards):
    """The FASTA files of a sample, in the order of the sheet."""
    return SAMPLES[wildcards.sample]


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
    return f"{split}/shards/{wildcards.shard}.fasta"


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
    return ancient(path) if path in EARLIER_PLANS else path


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


# ---- params -------------------------------------------------------------------------------------


def option(dpath, name=None):
    """Give a configured value as a command line option, `--name=value`."""
    name = name or Path(dpath).name.replace("_", "-")
    return f"--{name}={lookup(within=config, dpath=dpath)}"


def format_option(step):
    """Give the format number of a step as an option: a command of another version refuses it."""
    return f"--format={FORMATS[step]}"


def folder_of(name):
    """Make a params function: the folder of the (first) input file called `name`."""

    def folder(wildcards, input):
        files = input[name]
        return str(Path(files if isinstance(files, str) else files[0]).parent)

    return folder


def content_options(wildcards):
    """The content that each FASTA file had when the workflow was read, `--sha256=HASH` each."""
    return [f"--sha256={CONTENTS[path]}" for path in SAMPLES[wildcards.sample]]


def limited_ids_options():
    """The exports that not every id can have, as options of split."""
    return [f"--exports={export}" for export in split_parameters()["exports"]]


def window_options():
    """The overlap of windows as an option, where there are windows."""
    windows = config["plan"]["long_sequences"] == "window"
    return [option("plan/window_overlap")] if windows else []


def layer_options():
    """The pooled layers as options, `--layers=N` each."""
    return [f"--layers={layer}" for layer in config["embed"]["layers"]]


def readout_options():
    """What is read out of the model, as the options of `embed` and `budget`."""
    return [
        *layer_options(),
        option("embed/pooling"),
        option("embed/pseudo_perplexity"),
        option("embed/output_dtype"),
    ]


def extra_arrays():
    """The arrays of a shard beside its embeddings, as patterns of their files."""
    asked = {
        "residues": config["embed"]["pooling"] == "none",
        "pseudo_perplexity": config["embed"]["pseudo_perplexity"] != "none",
    }
    return [f"{EMBEDDINGS}.{name}.npy" for name in asked if asked[name]]


def residues_outputs():
    """The file of all residues, where they are kept."""
    return (
        ["results/{sample}/residues.h5"] if config["embed"]["pooling"] == "none" else []
    )


def residues_options(wildcards, output):
    """The file of all residues as an option, `--residues=FILE`."""
    return [f"--residues={path}" for path in output.residues]


def export_outputs():
    """The files of the configured exports, and folders, which have no ending."""
    return [
        path if Path(path).suffix else directory(path)
        for export in config["merge"]["exports"]
        for path in EXPORT_FILES[export]
    ]


def export_options(wildcards):
    """The configured exports as options, `--export=KIND=FILE`."""
    return [
        f"--export={export}={EXPORT_FILES[export][0].format(sample=wildcards.sample)}"
        for export in config["merge"]["exports"]
    ]
