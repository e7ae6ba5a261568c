# Takes away the results of another request once all that the new ones need is there.
rule request:
    input:
        parts=requested_parts,
        budget=requested_budget,
    output:
        "results/{scope}/requests/{kind}-{request}.json",
    log:
        "logs/requests/{scope}/{kind}-{request}.log",
    wildcard_constraints:
        scope=r"_all|[A-Za-z0-9][A-Za-z0-9._-]*",
        kind="|".join(RESULTS),
        request=r"[0-9a-f]{12}(?:-\d+)?",
    localrule: True
    conda:
        "../envs/virnucpro.yaml"
    params:
        embeddings=embeddings_option,
        earlier=earlier_results,
    shell:
        "virnucpro withdraw --request {output:q} {params.embeddings:q} -- {params.earlier:q} 2> {log:q}"


# The command line takes the folders and learns the shards from the manifest; the rule names every
# file, so that it waits for each and runs again when one changes.
rule merge:
    input:
        request=sample_request,
        manifest=split_manifest,
        records=split_records,
        plans=of_all_shards(f"{PLAN}.parquet"),
        embeddings=of_all_shards(f"{EMBEDDINGS}.npy"),
        receipts=of_all_shards(f"{EMBEDDINGS}.json"),
        extras=of_all_shards(extra_arrays()),
        genes=genes_of(".json"),
        contigs=genes_of(".contigs.parquet"),
    output:
        embeddings="results/{sample}/embeddings.h5ad",
        quarantine="results/{sample}/quarantine.tsv",
        residues=residues_outputs(),
        contigs=contigs_outputs(),
        means=means_outputs(),
        exports=export_outputs(),
    log:
        "logs/merge/{sample}.log",
    benchmark:
        "benchmarks/results/merge/{sample}.tsv"
    conda:
        "../envs/virnucpro.yaml"
    resources:
        mem_mb=merge_megabytes,
        runtime=minutes_for(megabytes_a_minute=600),
    params:
        split=folder_of("manifest"),
        plans=folder_of("plans"),
        embeddings=folder_of("embeddings"),
        residues=residues_options,
        exports=export_options,
        contigs=contigs_options,
        format=format_option("merge"),
    shell:
        "virnucpro merge --request {input.request:q} --shards {params.split:q} --records {input.records:q}"
        " --plans {params.plans:q} --embeddings {params.embeddings:q}"
        " --output {output.embeddings:q} --quarantine {output.quarantine:q}"
        " {params.residues:q} {params.exports:q} {params.contigs:q} {params.format:q} 2> {log:q}"
