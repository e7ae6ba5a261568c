"""Requests: what the results that users know by a fixed name were made for.

`results/{sample}/embeddings.h5ad` can be of one input and configuration only. Before it is made, the
rule `request` takes away what is there of other requests, and leaves a file with the id of the new
one; `all` asks for that file. So a result beside the request of the present configuration is of
it, however an earlier run ended.
"""

from pathlib import Path

# The results of each kind of request, by place: of a sample, or of all samples together.
RESULTS = {
    "results": [
        "results/{scope}/embeddings.h5ad",
        "results/{scope}/quarantine.tsv",
        "results/{scope}/residues.h5",
        "results/{scope}/contigs.tsv",
        "results/{scope}/contigs.h5ad",
        "results/{scope}/packing_report.json",
        "results/{scope}/packing_report.tsv",
        "results/{scope}/report",
        *(
            path.replace("{sample}", "{scope}")
            for paths in EXPORT_FILES.values()
            for path in paths
        ),
    ],
    "plans": ["results/{scope}/plan_report.json", "results/{scope}/plan_report.tsv"],
    "overview": [
        "results/{scope}/overview.html",
        "results/{scope}/map_by_length.svg",
        "results/{scope}/map_by_sample.svg",
        "results/{scope}/map_by_truncation.svg",
    ],
}
# Bytes at the start of an embeddings.h5ad among which its root's attributes are.
H5AD_HEAD = 1 << 16


def embeddings_id(sample):
    """Return the id of a sample's embeddings.h5ad, which has no folders in it."""
    files = [[Path(path).name, CONTENTS[path]] for path in SAMPLES[sample]]
    return identify(FORMATS["merge"], sample, files, split_parameters(), EMBED_ID)


def results_id(sample):
    """Return the id of everything that is made of a sample."""
    exports = sorted(config["merge"]["exports"])
    parts = FORMATS["report"], embeddings_id(sample), SAMPLES[sample], exports
    means = [config["merge"]["contigs"]] if HAS_CONTIGS else []
    return identify(*parts, SPLIT_IDS[sample], *means)


def plans_id(sample):
    """Return the id of a sample's plan report, which estimates what a model will take.

    It also tells what stores have, which is another thing once they have more.
    """
    parts = SPLIT_IDS[sample], PLAN_ID, MODEL, READOUT, *STORED
    return identify(FORMATS["report"], *parts)


def overview_id():
    """Return the id of the report on all samples."""
    return identify(FORMATS["report"], sorted(map(results_id, SAMPLES)))


def is_foreign(sample):
    """Whether embeddings.h5ad says of itself that it was made for another request."""
    try:
        with open(here(f"results/{sample}/embeddings.h5ad"), "rb") as handle:
            return embeddings_id(sample).encode() not in handle.read(H5AD_HEAD)
    except FileNotFoundError:
        return False
    except OSError:
        return True


def request_path(kind, scope, name):
    """Return the file of a request: the one that is there, unless what it stands for is foreign.

    A request takes the place of all others of its kind: two of them mean that results of another
    folder were copied over those that were there.
    """
    folder = Path("results", scope, "requests")
    there = sorted(
        path.name for path in Path(here(folder)).glob(f"{kind}-{name}*.json")
    )
    is_mixed = len(list(Path(here(folder)).glob(f"{kind}-*.json"))) > 1
    if is_mixed or (kind == "results" and is_foreign(scope)):
        numbers = ["", *(f"-{number}" for number in range(2, len(there) + 3))]
        names = (f"{kind}-{name}{number}.json" for number in numbers)
        return str(folder / next(path for path in names if path not in there))
    return str(folder / (there[0] if there else f"{kind}-{name}.json"))


def results_request(sample):
    """Return the request of a sample's results."""
    return request_path("results", sample, results_id(sample))


def plans_request(sample):
    """Return the request of a sample's plan report."""
    return request_path("plans", sample, plans_id(sample))


def overview_request():
    """Return the request of the report on all samples."""
    return request_path("overview", "_all", overview_id())


def sample_request(wildcards):
    """The request of the results that are made."""
    return results_request(wildcards.sample)


def plan_report_request(wildcards):
    """The request of the plan report that is made."""
    return plans_request(wildcards.sample)


def requested_parts(wildcards):
    """What has to be there before earlier results are taken away: all that the new ones need."""
    if wildcards.kind == "overview":
        return expand("results/{sample}/packing_report.json", sample=SAMPLES)
    pattern = {"plans": f"{PLAN}.json", "results": f"{EMBEDDINGS}.json"}[wildcards.kind]
    return expand(pattern, sample=wildcards.scope, shard=shards_of(wildcards.scope))


def requested_budget(wildcards):
    """Nothing, once the budget is measured: asked for here, that is done beside split, not after."""
    return measured_budget(wildcards) if wildcards.kind == "results" else []


def earlier_results(wildcards):
    """The results that a request takes the place of, whether they are there or not."""
    return [
        here(path.format(scope=wildcards.scope)) for path in RESULTS[wildcards.kind]
    ]


def embeddings_option(wildcards):
    """What embeddings.h5ad will say of itself, as an option of `withdraw`."""
    is_sample = wildcards.kind == "results"
    return f"--embeddings={embeddings_id(wildcards.scope) if is_sample else ''}"
