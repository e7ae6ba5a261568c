# Needs no GPU and no weights: what the plans promise, before anything is computed.
rule plan_report:
    input:
        request=plan_report_request,
        manifest=split_manifest,
        records=split_records,
        plans=of_all_shards(f"{PLAN}.parquet"),
        reports=of_all_shards(f"{PLAN}.json"),
    output:
        json="results/{sample}/plan_report.json",
        tsv="results/{sample}/plan_report.tsv",
    log:
        "logs/plan_report/{sample}.log",
    conda:
        "../envs/virnucpro.yaml"
    resources:
        mem_mb=grows_with_attempt(4000),
        runtime=grows_with_attempt(60),
        store=stores(),
        cache_dir=lookup(within=config, dpath="cache_dir"),
    params:
        shards=folder_of("manifest"),
        plans=folder_of("plans"),
        model=f"--model={MODEL_NAME}",
        layers=layer_options(),
        pooling=option("embed/pooling"),
        output_dtype=option("embed/output_dtype"),
        pseudo_perplexity=option("embed/pseudo_perplexity"),
        dtype=option("embed/dtype"),
        format=format_option("report"),
    shell:
        "virnucpro report plans --shards {params.shards:q} --plans {params.plans:q}"
        " --records {input.records:q} --json {output.json:q} --tsv {output.tsv:q}"
        " --cache-dir {resources.cache_dir:q} {params.model:q} {params.layers:q}"
        " {params.pooling:q} {params.output_dtype:q} {params.pseudo_perplexity:q}"
        " {params.dtype:q} --store={resources.store:q} {params.format:q} 2> {log:q}"
        " && cat {log:q}"


rule report:
    input:
        manifest=split_manifest,
        records=split_records,
        quarantine="results/{sample}/quarantine.tsv",
        plans=of_all_shards(f"{PLAN}.parquet"),
        reports=of_all_shards(f"{PLAN}.json"),
        receipts=of_all_shards(f"{EMBEDDINGS}.json"),
        step_logs=of_all_shards(f"{EMBEDDINGS}.steps.tsv"),
    output:
        json="results/{sample}/packing_report.json",
        summary=report(
            "results/{sample}/report/summary.html",
            caption="../report/summary.rst",
            category="Sample {sample}",
            labels={"sheet": "1 Summary"},
        ),
        ledger=report(
            "results/{sample}/report/ledger.html",
            caption="../report/ledger.rst",
            category="Sample {sample}",
            labels={"sheet": "2 Ledger of all records"},
        ),
        length_distribution=report(
            "results/{sample}/report/length_distribution.svg",
            caption="../report/length_distribution.rst",
            category="Sample {sample}",
            labels={"sheet": "3 Lengths"},
        ),
        duplicates=report(
            "results/{sample}/report/duplicates.svg",
            caption="../report/duplicates.rst",
            category="Sample {sample}",
            labels={"sheet": "4 Duplicates"},
        ),
        packing_efficiency=report(
            "results/{sample}/report/packing_efficiency.svg",
            caption="../report/packing_efficiency.rst",
            category="Sample {sample}",
            labels={"sheet": "5 Packing"},
        ),
        packing_by_shard=report(
            "results/{sample}/report/packing_by_shard.svg",
            caption="../report/packing_by_shard.rst",
            category="Sample {sample}",
            labels={"sheet": "6 Packing by shard"},
        ),
        throughput=report(
            "results/{sample}/report/throughput.svg",
            caption="../report/throughput.rst",
            category="Sample {sample}",
            labels={"sheet": "7 Throughput and memory"},
        ),
        tsv=report(
            "results/{sample}/packing_report.tsv",
            caption="../report/packing_report.rst",
            category="Sample {sample}",
            labels={"sheet": "8 Table of all shards"},
        ),
    log:
        "logs/report/{sample}.log",
    conda:
        "../envs/virnucpro.yaml"
    resources:
        mem_mb=grows_with_attempt(4000),
        runtime=grows_with_attempt(60),
        cache_dir=lookup(within=config, dpath="cache_dir"),
    params:
        shards=folder_of("manifest"),
        plans=folder_of("plans"),
        embeddings=folder_of("receipts"),
        report=subpath(output.summary, parent=True),
        format=format_option("report"),
    shell:
        "virnucpro report run --shards {params.shards:q} --plans {params.plans:q}"
        " --embeddings {params.embeddings:q} --records {input.records:q}"
        " --quarantine {input.quarantine:q} --json {output.json:q} --tsv {output.tsv:q}"
        " --report {params.report:q} --cache-dir {resources.cache_dir:q}"
        " {params.format:q} 2> {log:q}"


# The name of a sample starts with a letter or digit, so none is called `_all`.
rule overview:
    input:
        request=overview_request(),
        reports=expand("results/{sample}/packing_report.json", sample=SAMPLES),
        embeddings=expand("results/{sample}/embeddings.h5ad", sample=SAMPLES),
    output:
        overview=report(
            "results/_all/overview.html",
            caption="../report/overview.rst",
            category="All samples",
            labels={"sheet": "1 Overview"},
        ),
        by_length=report(
            "results/_all/map_by_length.svg",
            caption="../report/map.rst",
            category="All samples",
            labels={"sheet": "2 Map by length"},
        ),
        by_sample=report(
            "results/_all/map_by_sample.svg",
            caption="../report/map.rst",
            category="All samples",
            labels={"sheet": "3 Map by sample"},
        ),
        by_truncation=report(
            "results/_all/map_by_truncation.svg",
            caption="../report/map.rst",
            category="All samples",
            labels={"sheet": "4 Map by truncation"},
        ),
    log:
        "logs/overview.log",
    conda:
        "../envs/virnucpro.yaml"
    resources:
        mem_mb=8000,
        runtime=120,
    params:
        samples=list(SAMPLES),
        results=results_folder,
        report=subpath(output.overview, parent=True),
        format=format_option("report"),
    shell:
        "virnucpro report overview --results {params.results:q} --report {params.report:q}"
        " {params.format:q} -- {params.samples:q} 2> {log:q}"
