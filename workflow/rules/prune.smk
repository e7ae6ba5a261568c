# Never a part of a run: an earlier configuration finds its files again until somebody asks for this.
rule prune:
    log:
        "logs/prune.log",
    localrule: True
    conda:
        "../envs/virnucpro.yaml"
    params:
        superseded=superseded(),
    shell:
        "printf '%s\\n' {params.superseded:q} > {log:q} && rm -rf -- {params.superseded:q}"
