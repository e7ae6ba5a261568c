rule plan:
    input:
        split=its_split,
    output:
        plan=f"{PLAN}.parquet",
        report=f"{PLAN}.json",
    log:
        "logs/plan/{sample}/{shard}.log",
    conda:
        "../envs/virnucpro.yaml"
    resources:
        mem_mb=plan_megabytes,
        runtime=grows_with_attempt(30),
        cache_dir=lookup(within=config, dpath="cache_dir"),
    params:
        shard=shard_fasta,
        token_budget=option("plan/token_budget"),
        max_sequence_length=option("plan/max_sequence_length"),
        long_sequences=option("plan/long_sequences"),
        window_overlap=window_options(),
        format=format_option("plan"),
    shell:
        "virnucpro plan --plan {output.plan:q} --report {output.report:q}"
        " --cache-dir {resources.cache_dir:q} {params.token_budget:q}"
        " {params.max_sequence_length:q} {params.long_sequences:q} {params.window_overlap:q}"
        " {params.format:q}"
        " -- {params.shard:q} 2> {log:q}"
