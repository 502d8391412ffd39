# The policy: its beginning, its updates, and its evaluation.


rule initialise:
    input:
        reads("initialise", "first_shard"),
    output:
        passing(layout.POLICY.replace("{cycle}", layout.five_digits(0))),
    log:
        layout.LOG.replace("{cycle}", layout.five_digits(0)).replace("{stage}", "initialise"),
    benchmark:
        layout.BENCHMARK.replace("{cycle}", layout.five_digits(0)).replace("{stage}", "initialise")
    conda:
        "../envs/usbpo.yaml"
    threads: 1
    resources:
        runtime=runtime_of("initialise"),
        mem_mb=memory_of("initialise"),
    params:
        options=options_of("initialise"),
        code=code_of("initialise"),
    message:
        "initialise: the untrained policy of {wildcards.task}/{wildcards.method}/seed-{wildcards.seed}"
    shell:
        "usbpo initialise --data {input} --output {output} {params.options} > {log} 2>&1"


# Cycle 0 has no update; its policy is the one above.
ruleorder: initialise > policy


rule policy:
    input:
        data=reads("policy", "real_data"),
        rollouts=reads("policy", "model_data"),
        previous=reads("policy", "previous_policy"),
    output:
        policy=passing(layout.POLICY),
        metrics=layout.POLICY_METRICS,
    log:
        layout.LOG.replace("{stage}", "policy"),
    benchmark:
        layout.BENCHMARK.replace("{stage}", "policy")
    conda:
        "../envs/usbpo.yaml"
    threads: threads_of("policy")
    resources:
        runtime=runtime_of("policy"),
        mem_mb=memory_of("policy"),
        gpu=of_run("gpus"),
    params:
        options=options_of("policy"),
        code=code_of("policy"),
    message:
        "policy: actor-critic updates for {wildcards.task}/{wildcards.method}/seed-{wildcards.seed}, cycle {wildcards.cycle}"
    shell:
        "usbpo policy --data {input.data} --rollouts {input.rollouts} --previous-policy {input.previous} "
        "--output {output.policy} --metrics {output.metrics} --seed {wildcards.seed} --cycle {wildcards.cycle} "
        "{params.options} > {log} 2>&1"


rule evaluate:
    input:
        reads("evaluate", "policy_of"),
    output:
        layout.EVALUATION,
    log:
        layout.LOG.replace("{stage}", "evaluate"),
    benchmark:
        layout.BENCHMARK.replace("{stage}", "evaluate")
    # Before the next cycle's stages, so that the newest return is seen while the run goes on.
    priority: 1
    conda:
        "../envs/usbpo.yaml"
    threads: 1
    resources:
        runtime=runtime_of("evaluate"),
        mem_mb=memory_of("evaluate"),
    params:
        options=options_of("evaluate"),
        code=code_of("evaluate"),
        environment=of_run("environment_code"),
        files=of_run("environment_files"),
    message:
        "evaluate: episodes for {wildcards.task}/{wildcards.method}/seed-{wildcards.seed}, cycle {wildcards.cycle}"
    shell:
        "usbpo evaluate --policy {input} --output {output} --task {wildcards.task} --method {wildcards.method} --seed {wildcards.seed} "
        "--cycle {wildcards.cycle} {params.options} > {log} 2>&1"
