# The command line takes the folders and learns the shards from the manifest; the rule names every
# file, so that it waits for each and runs again when one changes.
rule merge:
    input:
        manifest=split_manifest,
        records="results/{sample}/records.parquet",
        shards=of_all_shards("results/{sample}/shards/{shard}.fasta"),
        plans=of_all_shards("results/{sample}/plan/{shard}.parquet"),
        embeddings=of_all_shards("results/{sample}/embeddings/{shard}.npy"),
        receipts=of_all_shards("results/{sample}/embeddings/{shard}.json"),
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
        shards=folder_of("manifest"),
        plans=folder_of("plans"),
        embeddings=folder_of("embeddings"),
        residues=residues_options,
        exports=export_options,
        unwanted=unwanted_outputs,
        format=format_option("merge"),
    shell:
        "virnucpro merge --shards {params.shards:q} --records {input.records:q}"
        " --plans {params.plans:q} --embeddings {params.embeddings:q}"
        " --output {output.embeddings:q} --quarantine {output.quarantine:q}"
        " {params.residues:q} {params.exports:q} {params.format:q} 2> {log:q}"
        " && rm -rf -- {params.unwanted:q}"
