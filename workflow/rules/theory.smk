# The theory, measured: nothing but the results waits for it.


rule theory:
    input:
        data=reads("theory", "real_data"),
        rollouts=reads("theory", "model_data_before"),
        model_mle=reads("theory", "maximum_likelihood"),
        model=reads("theory", "fine_tuned_model"),
        previous=reads("theory", "previous_models"),
        previous_policy=reads("theory", "previous_policy"),
        policy=reads("theory", "policy_of"),
    output:
        rows=layout.THEORY_ROWS,
        metrics=layout.THEORY_METRICS,
    log:
        layout.LOG.replace("{stage}", "theory"),
    benchmark:
        layout.BENCHMARK.replace("{stage}", "theory")
    conda:
        "../envs/usbpo.yaml"
    threads: 1
    resources:
        runtime=runtime_of("theory"),
        mem_mb=memory_of("theory"),
    params:
        options=options_of("theory"),
        code=code_of("theory"),
        environment=of_run("environment_code"),
        files=of_run("environment_files"),
        termination=of_run("termination_code"),
    message:
        "theory: shift, bias and bounds of {wildcards.task}/{wildcards.method}/seed-{wildcards.seed}, cycle {wildcards.cycle}"
    shell:
        "usbpo theory --data {input.data} --rollouts {input.rollouts} --model-mle {input.model_mle} "
        "--model {input.model} --previous-model {input.previous} --previous-policy {input.previous_policy} "
        "--policy {input.policy} --output {output.rows} --metrics {output.metrics} "
        "--seed {wildcards.seed} --cycle {wildcards.cycle} {params.options} > {log} 2>&1"
