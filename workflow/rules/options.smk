"""Params of the rules: the configuration as options of the command line, and the files it asks for."""

import os
from pathlib import Path


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


def results_folder(wildcards):
    """The folder of all samples' results."""
    return here("results")


def content_options(wildcards):
    """The content that each FASTA file had when the workflow was read, `--sha256=HASH` each.

    Genes are found later than that: merge compares what split read with what was found.
    """
    files = [] if HAS_CONTIGS else SAMPLES[wildcards.sample]
    return [f"--sha256={CONTENTS[path]}" for path in files]


def contigs_content_option(wildcards):
    """The content that a file of contigs had when the workflow was read, `--sha256=HASH`."""
    return f"--sha256={CONTENTS[contigs_fasta(wildcards)]}"


def genes_prefix(wildcards):
    """The files of genes without their suffixes."""
    return GENES.format(**wildcards)


def input_type_option():
    """What split reads, `--input-type=TYPE`: of contigs it reads the genes."""
    return "--input-type=genes" if HAS_CONTIGS else option("input_type")


def contigs_outputs():
    """The table of a sample's contigs, where it has contigs."""
    return ["results/{sample}/contigs.tsv"] if HAS_CONTIGS else []


def means_outputs():
    """The file of means over contigs, where it is asked for."""
    wanted = config["merge"]["contigs"] == "mean"
    return ["results/{sample}/contigs.h5ad"] if wanted else []


def contigs_options(wildcards, input, output):
    """The genes that were found, and what is written of their contigs, as options of merge."""
    return [
        *(f"--genes={path.removesuffix('.json')}" for path in input.genes),
        *(f"--contigs={path}" for path in output.contigs),
        *(f"--contig-means={path}" for path in output.means),
    ]


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


def stores():
    """The folders of the stores, joined as in a search path."""
    return os.pathsep.join(here(path) for path in config["store"])


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
        f"--export={export}={here(EXPORT_FILES[export][0].format(sample=wildcards.sample))}"
        for export in config["merge"]["exports"]
    ]
