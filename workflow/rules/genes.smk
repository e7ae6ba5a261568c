# One job a file of contigs, whose content is in the name of its genes; so the input is `ancient`.
rule genes:
    input:
        contigs=ancient(contigs_fasta),
    output:
        receipt=f"{GENES}.json",
        files=[GENES + suffix for suffix in GENES_FILES],
    log:
        "logs/genes/{sample}/{genes}/{number}.log",
    benchmark:
        "benchmarks/results/genes/{sample}/{genes}/{number}.tsv"
    conda:
        "../envs/contigs.yaml"
    threads: 8
    resources:
        mem_mb=genes_megabytes,
        runtime=minutes_for(megabytes_a_minute=8),
        cache_dir=lookup(within=config, dpath="cache_dir"),
    params:
        prefix=genes_prefix,
        max_contig_bases=option("genes/max_contig_bases"),
        content=contigs_content_option,
        format=format_option("genes"),
    shell:
        "virnucpro genes --output {params.prefix:q} --processes {threads} {params.max_contig_bases:q}"
        " --cache-dir {resources.cache_dir:q} {params.content:q} {params.format:q}"
        " -- {input.contigs:q} 2> {log:q}"
