# What an experiment shows: figures, tables, and the page of `snakemake --report`.


rule results:
    input:
        result_inputs,
    output:
        [shown(name) for name in SHOWN],
        [f"{RESULTS}/{name}" for name in FILES if name not in SHOWN],
    log:
        f"{RESULTS}/logs/results.log",
    benchmark:
        f"{RESULTS}/logs/results.tsv"
    conda:
        "../envs/usbpo.yaml"
    threads: 1
    resources:
        mem_mb=1000,
    params:
        **PLAN.result_params(),
        folder=subpath(output[0], parent=True),
    message:
        "results: figures and tables of {params.experiment}"
    shell:
        "usbpo results --experiment {params.experiment} --runs {params.runs} --returns {params.returns} "
        "--output {params.folder} > {log} 2>&1"
