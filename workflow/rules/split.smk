# A checkpoint, because the number of shards is known only afterwards, and because shards whose
# content stays the same then keep their plans and embeddings when this rule runs again.
checkpoint split:
    input:
        fasta=sample_fastas,
    output:
        shards=directory("results/{sample}/shards"),
        records="results/{sample}/records.parquet",
    log:
        "logs/split/{sample}.log",
    benchmark:
        "benchmarks/results/split/{sample}.tsv"
    conda:
        "../../envs/virnucpro.yaml"
    resources:
        mem_mb=grows_with_attempt(2000),
        runtime=minutes_for(megabytes_a_minute=60),
    params:
        shard_tokens=option("split/shard_tokens"),
        max_invalid_fraction=option("split/max_invalid_fraction"),
        max_record_residues=option("split/max_record_residues"),
        input_type=option("input_type"),
        duplicate_ids=option("duplicate_ids"),
        files=fasta_sizes,
        format=format_option("split"),
        plans="results/{sample}/plan",
        embeddings="results/{sample}/embeddings",
    shell:
        "virnucpro split --sample {wildcards.sample:q} --shards {output.shards:q}"
        " --records {output.records:q} {params.shard_tokens:q} {params.max_invalid_fraction:q}"
        " {params.max_record_residues:q} {params.input_type:q} {params.duplicate_ids:q}"
        " {params.format:q} -- {input.fasta:q} 2> {log:q}\n"
        # Plans and embeddings of shards that an earlier split had and this one hasn't: merge would
        # refuse them as too many. Hidden ones are pieces of embeddings that were not finished.
        "for file in {params.plans:q}/[0-9]* {params.embeddings:q}/[0-9]* {params.embeddings:q}/.[0-9]*;"
        ' do name="${{file##*/}}"; name="${{name#.}}";'
        ' [ -e {output.shards:q}/"${{name%%.*}}.fasta" ] || rm -rf -- "$file"; done'
