# Needs no GPU and no weights: what the plans promise, before anything is computed.
rule plan_report:
    input:
        manifest=split_manifest,
        records="results/{sample}/records.parquet",
        plans=of_all_shards("results/{sample}/plan/{shard}.parquet"),
        reports=of_all_shards("results/{sample}/plan/{shard}.json"),
    output:
        json="results/{sample}/plan_report.json",
        tsv="results/{sample}/plan_report.tsv",
    log:
        "logs/plan_report/{sample}.log",
    conda:
        "../../envs/virnucpro.yaml"
    resources:
        mem_mb=grows_with_attempt(4000),
        runtime=grows_with_attempt(60),
        cache_dir=lookup(within=config, dpath="cache_dir"),
    params:
        shards=folder_of("manifest"),
        plans=folder_of("plans"),
        model=f"--model={MODEL}",
        layers=layer_options(),
        output_dtype=option("embed/output_dtype"),
        format=format_option("report"),
    shell:
        "virnucpro report plans --shards {params.shards:q} --plans {params.plans:q}"
        " --records {input.records:q} --json {output.json:q} --tsv {output.tsv:q}"
        " --cache-dir {resources.cache_dir:q} {params.model:q} {params.layers:q}"
        " {params.output_dtype:q} {params.format:q} 2> {log:q}"
        " && cat {log:q}"


rule report:
    input:
        manifest=split_manifest,
        records="results/{sample}/records.parquet",
        quarantine="results/{sample}/quarantine.tsv",
        plans=of_all_shards("results/{sample}/plan/{shard}.parquet"),
        reports=of_all_shards("results/{sample}/plan/{shard}.json"),
        receipts=of_all_shards("results/{sample}/embeddings/{shard}.json"),
        traces=of_all_shards("results/{sample}/embeddings/{shard}.trace.tsv"),
    output:
        json="results/{sample}/packing_report.json",
        tsv=report(
            "results/{sample}/packing_report.tsv",
            caption="../report/packing_report.rst",
            category="{sample}",
            labels={"what": "packing report", "kind": "table"},
        ),
        length_distribution=report(
            "results/{sample}/figures/length_distribution.svg",
            caption="../report/length_distribution.rst",
            category="{sample}",
            labels={"what": "length distribution", "kind": "figure"},
        ),
        packing_efficiency=report(
            "results/{sample}/figures/packing_efficiency.svg",
            caption="../report/packing_efficiency.rst",
            category="{sample}",
            labels={"what": "packing efficiency", "kind": "figure"},
        ),
        throughput=report(
            "results/{sample}/figures/throughput.svg",
            caption="../report/throughput.rst",
            category="{sample}",
            labels={"what": "throughput", "kind": "figure"},
        ),
    log:
        "logs/report/{sample}.log",
    conda:
        "../../envs/virnucpro.yaml"
    resources:
        mem_mb=grows_with_attempt(4000),
        runtime=grows_with_attempt(60),
        cache_dir=lookup(within=config, dpath="cache_dir"),
    params:
        shards=folder_of("manifest"),
        plans=folder_of("plans"),
        embeddings=folder_of("receipts"),
        figures=subpath(output.throughput, parent=True),
        format=format_option("report"),
    shell:
        "virnucpro report run --shards {params.shards:q} --plans {params.plans:q}"
        " --embeddings {params.embeddings:q} --records {input.records:q}"
        " --quarantine {input.quarantine:q} --json {output.json:q} --tsv {output.tsv:q}"
        " --figures {params.figures:q} --cache-dir {resources.cache_dir:q}"
        " {params.format:q} 2> {log:q}"
