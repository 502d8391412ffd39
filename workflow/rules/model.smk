# The model: maximum likelihood, fine-tuning, and the rollouts made with it.


rule phase1:
    input:
        data=reads("phase1", "real_data"),
        previous=reads("phase1", "previous_models"),
    output:
        model=passing(layout.MODEL_MLE),
        metrics=layout.PHASE1_METRICS,
    log:
        layout.LOG.replace("{stage}", "phase1"),
    benchmark:
        layout.BENCHMARK.replace("{stage}", "phase1")
    conda:
        "../envs/usbpo.yaml"
    threads: threads_of("phase1")
    resources:
        runtime=runtime_of("phase1"),
        mem_mb=memory_of("phase1"),
        gpu=of_run("gpus"),
    params:
        options=options_of("phase1"),
        code=code_of("phase1"),
    message:
        "phase1: maximum likelihood for {wildcards.task}/{wildcards.method}/seed-{wildcards.seed}, cycle {wildcards.cycle}"
    shell:
        "usbpo phase1 --data {input.data} --previous-model {input.previous} "
        "--output {output.model} --metrics {output.metrics} --seed {wildcards.seed} --cycle {wildcards.cycle} {params.options} > {log} 2>&1"


rule phase2:
    input:
        data=reads("phase2", "real_data"),
        rollouts=reads("phase2", "model_data_before"),
        model_mle=reads("phase2", "model_to_fine_tune"),
        previous=reads("phase2", "previous_models"),
    output:
        model=passing(layout.MODEL),
        metrics=layout.PHASE2_METRICS,
    log:
        layout.LOG.replace("{stage}", "phase2"),
    benchmark:
        layout.BENCHMARK.replace("{stage}", "phase2")
    conda:
        "../envs/usbpo.yaml"
    threads: threads_of("phase2")
    resources:
        runtime=runtime_of("phase2"),
        mem_mb=memory_of("phase2"),
        gpu=of_run("gpus"),
    params:
        options=options_of("phase2"),
        code=code_of("phase2"),
    message:
        "phase2: fine-tuning for {wildcards.task}/{wildcards.method}/seed-{wildcards.seed}, cycle {wildcards.cycle}"
    shell:
        "usbpo phase2 --data {input.data} --rollouts {input.rollouts} --model-mle {input.model_mle} "
        "--previous-model {input.previous} --output {output.model} "
        "--metrics {output.metrics} --seed {wildcards.seed} --cycle {wildcards.cycle} {params.options} > {log} 2>&1"


rule rollout:
    input:
        data=reads("rollout", "real_data"),
        model=reads("rollout", "models"),
        policy=reads("rollout", "previous_policy"),
    output:
        rollouts=passing(layout.ROLLOUTS),
        metrics=layout.ROLLOUT_METRICS,
    log:
        layout.LOG.replace("{stage}", "rollout"),
    benchmark:
        layout.BENCHMARK.replace("{stage}", "rollout")
    conda:
        "../envs/usbpo.yaml"
    threads: threads_of("rollout")
    resources:
        runtime=runtime_of("rollout"),
        mem_mb=memory_of("rollout"),
        gpu=of_run("gpus"),
    params:
        options=options_of("rollout"),
        code=code_of("rollout"),
        termination=of_run("termination_code"),
    message:
        "rollout: model rollouts for {wildcards.task}/{wildcards.method}/seed-{wildcards.seed}, cycle {wildcards.cycle}"
    shell:
        "usbpo rollout --data {input.data} --model {input.model} --policy {input.policy} "
        "--output {output.rollouts} --metrics {output.metrics} --seed {wildcards.seed} --cycle {wildcards.cycle} {params.options} > {log} 2>&1"
