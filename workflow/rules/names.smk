"""Names that carry what they were made of, so that a file that is there is the file that is meant.

Intermediates lie under an id: a hash over the content of the inputs, the part of the configuration
that their bytes depend on, and the format numbers. Whatever ended an earlier run, and whatever
Snakemake remembers or has lost, a file under such a name was made of exactly this; going back to an
earlier configuration finds its files again. Results have names that a user knows; `requests.smk`
sees to it that they are of the request that is asked for.
"""

import hashlib
import json
import os
import re
import secrets
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ID_DIGITS = 12
# Bytes of inputs above which reading them before the first job is worth a word.
MUCH_TO_READ = 2_000_000_000


def identify(*parts):
    """Return the id of what is made of `parts`, values as JSON has them."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:ID_DIGITS]


# ---- content of the inputs ----------------------------------------------------------------------


def read_contents(paths):
    """Return {path: SHA-256 of its content}, None for one that cannot be read.

    A file is read once: while its size and its times stay as they were, the hash is taken from
    `contents.json` in the cache folder. The time of the last change of any kind, which no program
    can set, is among them.
    """
    memory = Path(config["cache_dir"], "contents.json")
    try:
        known = dict(json.loads(memory.read_text()))
    except (OSError, ValueError):
        known = {}
    states = {path: state_of(path) for path in dict.fromkeys(paths)}
    unknown = [
        path
        for path, state in states.items()
        if state and known.get(os.path.abspath(path), [None])[:-1] != state
    ]
    size = sum(states[path][0] for path in unknown)
    if size > MUCH_TO_READ and workflow.is_main_process:
        logger.info(
            f"virnucpro: reading {len(unknown)} new file(s), {size / 1e9:.1f} GB"
        )
    with ThreadPoolExecutor(8) as threads:
        for path, sha256 in zip(unknown, threads.map(content_of, unknown)):
            if sha256 and state_of(path) == states[path]:
                known[os.path.abspath(path)] = [*states[path], sha256]
            elif sha256:  # it is being written: what was read is of no file that stays
                known.pop(os.path.abspath(path), None)
                states[path] = [sha256]
    if unknown and workflow.is_main_process:
        remember_contents(memory, known)
    return {
        path: (
            None if state is None else known.get(os.path.abspath(path), [state[0]])[-1]
        )
        for path, state in states.items()
    }


def state_of(path):
    """Return what changes when a file does, or None for one that is not there."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


def content_of(path):
    """Return the SHA-256 of a file, or None for one that cannot be read."""
    try:
        with open(path, "rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    except OSError:
        return None


def remember_contents(memory, known):
    """Keep hashes for the next run; where that is not possible, it reads the files again."""
    temporary = memory.with_name(f".{memory.name}.{secrets.token_hex(4)}")
    try:
        memory.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(dict(sorted(known.items())), indent=0))
        temporary.replace(memory)
    except OSError as error:
        logger.warning(f"cannot remember the content of the inputs: {error}")


def stored():
    """Return the names of all segments of the stores, of which there are few, each for many rows."""
    paths = [Path(here(path)) for path in config["store"]]
    return [
        [str(path), sorted(map(str, path.glob("[0-9a-f]*/[0-9a-f]*")))]
        for path in paths
    ]


# ---- what earlier steps say of themselves -------------------------------------------------------


def read_sealed(path):
    """Return a sealed JSON object, or None where it is missing, damaged or was changed.

    As virnucpro.files.read_json, but it never raises: what is damaged is made again.
    """
    try:
        value = json.loads(Path(path).read_bytes())
        seal = value.pop("seal")
        text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    return value if seal == f"sha256 of the rest: {sha256}" else None


# ---- ids ----------------------------------------------------------------------------------------


def model_files():
    """The local files that the model is made from; none for a model that has a name."""
    source = Path(config["model"])
    if config["model"] in NAMED_MODELS:
        return []
    if source.is_file():
        return [str(source)]
    return sorted(
        str(path)
        for path in source.iterdir()
        if path.suffix in {".json", ".safetensors", ".bin"}
    )


def name_model():
    """Return the name of the model's files: its own, or that of a local path, and its id."""
    source, files = config["model"], model_files()
    path = Path(source).resolve()
    name = path.name if path.is_dir() else path.stem
    name = source if not files else re.sub(r"[^A-Za-z0-9._-]+", "_", name)
    contents = [[Path(file).name, CONTENTS[file]] for file in files]
    return f"{name.lstrip('._-') or 'model'}-{identify(FORMATS['model'], source if not files else contents)}"


def genes_parameters():
    """Return what the genes of a sample depend on beside its contigs; nothing without contigs."""
    return {"genes": [FORMATS["genes"], config["genes"]]} if HAS_CONTIGS else {}


def split_parameters():
    """Return what a split depends on beside its input."""
    return {
        **genes_parameters(),
        **config["split"],
        **{
            key: config[key]
            for key in ("input_type", "ids", "duplicate_ids", "empty_samples")
        },
        # An export that limits ids is refused by split.
        "exports": [
            export for export in config["merge"]["exports"] if export == "uniprot-h5"
        ],
    }


def name_split(sample):
    """Return the id of a sample's split; another one in place of a split that is damaged."""
    files = [[path, CONTENTS[path]] for path in SAMPLES[sample]]
    base = identify(FORMATS["split"], sample, files, split_parameters())
    return sound_name(base, split_problem, sample, "is split again")


def name_genes(sample):
    """Return the id of a sample's genes; another one in place of genes that are damaged."""
    files = [[path, CONTENTS[path]] for path in SAMPLES[sample]]
    base = identify(files, genes_parameters())
    return sound_name(base, genes_problem, sample, "gets its genes found again")


def sound_name(base, problem_of, sample, consequence):
    """Return the first of base, base-2, ... under which nothing damaged is."""
    name, number = base, 1
    while (problem := problem_of(sample, name)) is not None:
        if workflow.is_main_process:
            logger.warning(f"{problem}: {sample} {consequence}, into another folder")
        number += 1
        name = f"{base}-{number}"
    return name


def genes_problem(sample, name):
    """Say what is wrong with a sample's genes, or return None for those that are whole or not there."""
    for number in range(len(SAMPLES[sample])):
        prefix = GENES.format(sample=sample, genes=name, number=number)
        if not Path(f"{prefix}.json").exists():
            continue
        if read_sealed(f"{prefix}.json") is None:
            return f"{prefix}.json is damaged"
        for suffix in GENES_FILES:
            if not Path(prefix + suffix).exists():
                return f"{prefix}{suffix} is missing"
    return None


def split_problem(sample, name):
    """Say what is wrong with a split, or return None for one that is whole or not there."""
    folder = here(SPLIT.format(sample=sample, split=name))
    manifest = Path(folder, "shards", "manifest.json")
    if not manifest.exists():
        return None
    split = read_sealed(manifest)
    if split is None:
        return f"{manifest} is damaged"
    for shard in split["shards"]:
        fasta = manifest.with_name(f"{shard['name']}.fasta")
        embedded = here(f"{EMBEDDINGS}.npy".format(sample=sample, shard=shard["name"]))
        if not (fasta.exists() or Path(embedded).exists()):
            return f"{fasta} is missing"
    return None


def plan_parameters():
    """Return what a plan depends on beside its shard."""
    windows = config["plan"]["long_sequences"] == "window"
    return {k: v for k, v in config["plan"].items() if windows or k != "window_overlap"}


CONTENTS = read_contents(
    [*(path for files in SAMPLES.values() for path in files), *model_files()]
)
STORED = stored()
MODEL = name_model()
PLAN_ID = identify(FORMATS["plan"], plan_parameters())
# What was computed on another device stays, and leave to compute it changes no byte of it.
NO_PART = ("device", "accept_float8_residues")
READOUT = {key: value for key, value in config["embed"].items() if key not in NO_PART}
# A store that gives the same bits is no part of it, either.
ACCEPTED = [] if config["store_accept"] == "same" else [config["store_accept"]]
EMBED_ID = identify(FORMATS["embed"], PLAN_ID, MODEL, READOUT, *ACCEPTED)
BUDGET_ID = identify(
    FORMATS["budget"], MODEL, plan_parameters(), READOUT, config["embed"]["device"]
)


# ---- places -------------------------------------------------------------------------------------

MODEL_WEIGHTS = f"resources/models/{MODEL}.safetensors"
MODEL_RECEIPT = f"resources/models/{MODEL}.json"
MODEL_NAME = MODEL.rpartition("-")[0]
TOKEN_BUDGET = f"resources/token_budget/{MODEL_NAME}-{BUDGET_ID}.json"
GENES = "results/{sample}/genes/{genes}/{number}"
GENES_FILES = (".faa.gz", ".gff.gz", ".contigs.parquet")
SPLIT = "results/{sample}/split/{split}"
PLAN = f"results/{{sample}}/plan/{PLAN_ID}/{{shard}}"
EMBEDDINGS = f"results/{{sample}}/embeddings/{EMBED_ID}/{{shard}}"

GENES_IDS = {sample: name_genes(sample) for sample in SAMPLES} if HAS_CONTIGS else {}
SPLIT_IDS = {sample: name_split(sample) for sample in SAMPLES}


# ---- what earlier inputs and configurations have left -------------------------------------------


def superseded():
    """Return the intermediates that no run of the present input and configuration needs."""
    found = []
    for sample in SAMPLES:
        folder = Path(here(f"results/{sample}"))
        for kind, kept in (
            ("genes", GENES_IDS.get(sample)),
            ("split", SPLIT_IDS[sample]),
            ("plan", PLAN_ID),
            ("embeddings", EMBED_ID),
        ):
            found += [
                path for path in sorted(folder.glob(f"{kind}/*")) if path.name != kept
            ]
    found += [
        path
        for path in sorted(Path(here("resources/models")).glob("*"))
        if path.stem != MODEL
    ]
    found += [
        path
        for path in sorted(Path(here("resources/token_budget")).glob("*"))
        if str(path) != here(TOKEN_BUDGET)
    ]
    return list(map(str, found))


def shards_of_earlier_splits(sample):
    """Return plans and embeddings, under the present ids, of shards that a sample has no more."""
    place = here(SPLIT.format(sample=sample, split=SPLIT_IDS[sample]))
    split = read_sealed(f"{place}/shards/manifest.json")
    if (
        split is None
    ):  # to be split: what it will have in common with earlier ones is not known
        return []
    names = {shard["name"] for shard in split["shards"]}
    folders = {
        Path(here(each.format(sample=sample, shard=""))).parent
        for each in (PLAN, EMBEDDINGS)
    }
    return [
        path
        for folder in sorted(folders)
        for path in sorted(folder.glob("*"))
        if path.name.removeprefix(".").partition(".")[0] not in names
    ]


wildcard_constraints:
    sample=r"[A-Za-z0-9][A-Za-z0-9._-]*",
    genes=r"[0-9a-f]{12}(?:-\d+)?",
    number=r"\d+",
    split=r"[0-9a-f]{12}(?:-\d+)?",
    shard=r"\d{5}-[0-9a-f]{12}",
    model=re.escape(MODEL),
