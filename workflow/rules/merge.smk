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
    output:
        embeddings="results/{sample}/embeddings.h5ad",
        quarantine="results/{sample}/quarantine.tsv",
        residues=residues_outputs(),
        exports=export_outputs(),
    log:
        "logs/merge/{sample}.log",
    benchmark:
        "benchmarks/results/merge/{sample}.tsv"
    conda:
        "../../envs/virnucpro.yaml"
    resources:
        mem_mb=merge_megabytes,
        runtime=minutes_for(megabytes_a_minute=600),
    params:
        split=folder_of("manifest"),
        plans=folder_of("plans"),
        embeddings=folder_of("embeddings"),
        residues=residues_options,
        exports=export_options,
        format=format_option("merge"),
    shell:
        "virnucpro merge --request {input.request:q} --shards {params.split:q} --records {input.records:q}"
        " --plans {params.plans:q} --embeddings {params.embeddings:q}"
        " --output {output.embeddings:q} --quarantine {output.quarantine:q}"
        " {params.residues:q} {params.exports:q} {params.format:q} 2> {log:q}"
