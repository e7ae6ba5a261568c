# A checkpoint, because the number of shards is known only afterwards. The name of a shard is of its
# content: what a split has in common with an earlier one is not planned and embedded again. The input
# is `ancient`, for its content is in the name of the split; genes are not, for a job makes them.
checkpoint split:
    input:
        fasta=genes_of(".faa.gz") if HAS_CONTIGS else ancient(sample_fastas),
    output:
        manifest=f"{SPLIT}/shards/manifest.json",
        records=f"{SPLIT}/records.parquet",
        quarantine=f"{SPLIT}/shards/quarantine.tsv",
    log:
        "logs/split/{sample}/{split}.log",
    benchmark:
        "benchmarks/results/split/{sample}/{split}.tsv"
    conda:
        "../envs/virnucpro.yaml"
    resources:
        mem_mb=grows_with_attempt(2000),
        runtime=minutes_for(megabytes_a_minute=60),
    params:
        shards=subpath(output.manifest, parent=True),
        shard_tokens=option("split/shard_tokens"),
        max_invalid_fraction=option("split/max_invalid_fraction"),
        max_unknown_fraction=option("split/max_unknown_fraction"),
        max_record_residues=option("split/max_record_residues"),
        input_type=input_type_option(),
        ids=option("ids"),
        duplicate_ids=option("duplicate_ids"),
        empty_samples=option("empty_samples"),
        exports=limited_ids_options(),
        contents=content_options,
        format=format_option("split"),
    shell:
        "virnucpro split --sample {wildcards.sample:q} --shards {params.shards:q}"
        " --records {output.records:q} {params.shard_tokens:q} {params.max_invalid_fraction:q}"
        " {params.max_unknown_fraction:q} {params.max_record_residues:q} {params.input_type:q}"
        " {params.ids:q} {params.duplicate_ids:q} {params.empty_samples:q} {params.exports:q}"
        " {params.contents:q} {params.format:q} -- {input.fasta:q} 2> {log:q}"
