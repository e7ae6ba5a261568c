# A checkpoint, so that weights that were removed are fetched again, but nothing is embedded again.
checkpoint fetch_model:
    input:
        model_sources,
    output:
        weights="resources/models/{model}.safetensors",
        receipt="resources/models/{model}.json",
    log:
        "logs/fetch_model/{model}.log",
    localrule: True
    conda:
        "../envs/virnucpro.yaml"
    resources:
        mem_mb=8000,
        runtime=120,
    params:
        source=lookup(within=config, dpath="model"),
        format=format_option("model"),
    shell:
        "virnucpro model fetch --weights {output.weights:q} --receipt {output.receipt:q}"
        " {params.format:q} -- {params.source:q} 2> {log:q}"


# Waits for the weights only, so it runs beside split and plan. A checkpoint, so that a budget that was
# removed is measured again and yet no reason to embed again; see `measured_budget`.
checkpoint token_budget:
    input:
        weights=MODEL_WEIGHTS,
        receipt=MODEL_RECEIPT,
    output:
        TOKEN_BUDGET,
    log:
        "logs/token_budget.log",
    benchmark:
        "benchmarks/results/token_budget.tsv"
    conda:
        "../envs/virnucpro.yaml"
    threads: 4
    resources:
        gpu=gpus(),
        mem_mb=model_megabytes,
        runtime=grows_with_attempt(30),
        cache_dir=lookup(within=config, dpath="cache_dir"),
    params:
        device=option("embed/device"),
        dtype=option("embed/dtype"),
        plan_token_budget=option("plan/token_budget", "plan-token-budget"),
        max_sequence_length=option("plan/max_sequence_length"),
        readout=readout_options(),
        format=format_option("budget"),
    shell:
        "virnucpro budget --weights {input.weights:q} --receipt {input.receipt:q}"
        " --out {output:q} --cache-dir {resources.cache_dir:q} {params.device:q} {params.dtype:q}"
        " {params.plan_token_budget:q} {params.max_sequence_length:q} {params.readout:q}"
        " {params.format:q} 2> {log:q}"
