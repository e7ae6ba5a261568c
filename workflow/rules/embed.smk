# Weights and token budget are `ancient`: the small receipt says when the weights are others, and
# measuring the budget again is no reason to compute again.
rule embed:
    input:
        shard=shard_fasta,
        plan="results/{sample}/plan/{shard}.parquet",
        model_receipt=MODEL_RECEIPT,
        weights=ancient(MODEL_WEIGHTS),
        budget=ancient(TOKEN_BUDGET),
    output:
        embeddings="results/{sample}/embeddings/{shard}.npy",
        receipt="results/{sample}/embeddings/{shard}.json",
        trace="results/{sample}/embeddings/{shard}.trace.tsv",
        extras=extra_arrays(),
    log:
        "logs/embed/{sample}/{shard}.log",
    benchmark:
        "benchmarks/results/embed/{sample}/{shard}.tsv"
    retries: 3
    conda:
        "../../envs/virnucpro.yaml"
    # A fixed number, as sums on a CPU may differ in their last bits with the number of threads;
    # Snakemake hands it on as OMP_NUM_THREADS and lowers it to --cores where that is less. Beside
    # a GPU these threads prepare batches. With `device: cpu` shards run side by side instead.
    threads: 4
    resources:
        gpu=gpus(),
        mem_mb=model_megabytes,
        runtime=embed_minutes,
        token_budget=step_tokens,
        device=lookup(within=config, dpath="embed/device"),
        cache_dir=lookup(within=config, dpath="cache_dir"),
    params:
        dtype=option("embed/dtype"),
        layers=layer_options(),
        pooling=option("embed/pooling"),
        pseudo_perplexity=option("embed/pseudo_perplexity"),
        output_dtype=option("embed/output_dtype"),
        format=format_option("embed"),
    shell:
        "virnucpro embed --plan {input.plan:q} --weights {input.weights:q}"
        " --model-receipt {input.model_receipt:q} --budget {input.budget:q}"
        " --embeddings {output.embeddings:q} --receipt {output.receipt:q}"
        " --trace {output.trace:q} --device {resources.device:q}"
        " --cache-dir {resources.cache_dir:q}"
        " --token-budget {resources.token_budget:q} {params.dtype:q} {params.layers:q}"
        " {params.pooling:q} {params.pseudo_perplexity:q} {params.output_dtype:q} {params.format:q}"
        " -- {input.shard:q} 2> {log:q}"
