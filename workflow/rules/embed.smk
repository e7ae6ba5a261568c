# Split, weights and token budget are waited for, but are no inputs: a shard that is there under its
# name is of this content, these weights and this configuration.
rule embed:
    input:
        split=its_split,
        plan=shard_plan,
        model=fetched_model,
        budget=measured_budget,
    output:
        embeddings=f"{EMBEDDINGS}.npy",
        receipt=f"{EMBEDDINGS}.json",
        step_log=f"{EMBEDDINGS}.steps.tsv",
        extras=extra_arrays(),
    log:
        "logs/embed/{sample}/{shard}.log",
    benchmark:
        "benchmarks/results/embed/{sample}/{shard}.tsv"
    retries: 3
    conda:
        "../envs/virnucpro.yaml"
    # A fixed number, as sums on a CPU may differ in their last bits with the number of threads;
    # Snakemake hands it on as OMP_NUM_THREADS and lowers it to --cores where that is less. Beside
    # a GPU these threads prepare batches. With `device: cpu` shards run side by side instead.
    threads: 4
    resources:
        gpu=gpus(),
        mem_mb=embed_megabytes,
        runtime=embed_minutes,
        token_budget=step_tokens,
        device=lookup(within=config, dpath="embed/device"),
        store=stores(),
        accept_residues=option("embed/accept_float8_residues"),
        cache_dir=lookup(within=config, dpath="cache_dir"),
        # Not params: with the rerun trigger `params`, another path would be embedded again.
        shard=shard_fasta,
        weights=here(MODEL_WEIGHTS),
        model_receipt=here(MODEL_RECEIPT),
        budget=here(TOKEN_BUDGET),
    params:
        dtype=option("embed/dtype"),
        readout=readout_options(),
        accept=option("store_accept"),
        format=format_option("embed"),
    shell:
        "virnucpro embed --plan {input.plan:q} --weights {resources.weights:q}"
        " --model-receipt {resources.model_receipt:q} --budget {resources.budget:q}"
        " --embeddings {output.embeddings:q} --receipt {output.receipt:q}"
        " --step-log {output.step_log:q} --device {resources.device:q}"
        " --cache-dir {resources.cache_dir:q} --store={resources.store:q} {params.accept:q}"
        " --token-budget {resources.token_budget:q} {params.dtype:q} {params.readout:q}"
        " {resources.accept_residues:q} {params.format:q}"
        " -- {resources.shard:q} 2> {log:q}"
