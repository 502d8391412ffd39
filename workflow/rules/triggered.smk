# A cycle of a model whose updates an event trigger decides (CMLO): the stages of the chain in one job.


rule triggered:
    input:
        data=reads("triggered", "real_data_before"),
        previous_shard=reads("triggered", "previous_shard"),
        previous_policy=reads("triggered", "previous_policy"),
        previous_model=reads("triggered", "previous_models"),
        previous_trigger=reads("triggered", "previous_trigger"),
        rollouts=reads("triggered", "model_data_before"),
    output:
        shard=layout.SHARD,
        trigger=layout.TRIGGER,
        model_mle=passing(layout.MODEL_MLE),
        phase1_metrics=layout.PHASE1_METRICS,
        rollouts=passing(layout.ROLLOUTS),
        rollout_metrics=layout.ROLLOUT_METRICS,
        policy=passing(layout.POLICY),
        policy_metrics=layout.POLICY_METRICS,
    log:
        layout.LOG.replace("{stage}", "triggered"),
    benchmark:
        layout.BENCHMARK.replace("{stage}", "triggered")
    wildcard_constraints:
        method=methods_with_trigger(phase2=False),
        cycle="(?!00000)[0-9]{5}",
    conda:
        "../envs/usbpo.yaml"
    threads: threads_of("triggered")
    resources:
        runtime=runtime_of("triggered"),
        mem_mb=memory_of("triggered"),
        gpu=of_run("gpus"),
    params:
        options=options_of("triggered"),
        code=code_of("triggered"),
        environment=of_run("environment_code"),
        files=of_run("environment_files"),
        termination=of_run("termination_code"),
        folder=subpath(output.trigger, parent=True),
    message:
        "triggered: {wildcards.task}/{wildcards.method}/seed-{wildcards.seed}, cycle {wildcards.cycle}"
    shell:
        "usbpo triggered --data {input.data} --previous-shard {input.previous_shard} "
        "--previous-policy {input.previous_policy} --previous-model {input.previous_model} "
        "--previous-trigger {input.previous_trigger} --rollouts {input.rollouts} --output {output.shard} "
        "--folder {params.folder} --task {wildcards.task} --method {wildcards.method} --seed {wildcards.seed} --cycle {wildcards.cycle} "
        "{params.options} > {log} 2>&1"


# The same where phase 2 follows.
use rule triggered as triggered_fine_tuned with:
    output:
        shard=layout.SHARD,
        trigger=layout.TRIGGER,
        model_mle=passing(layout.MODEL_MLE),
        phase1_metrics=layout.PHASE1_METRICS,
        model=passing(layout.MODEL),
        phase2_metrics=layout.PHASE2_METRICS,
        rollouts=passing(layout.ROLLOUTS),
        rollout_metrics=layout.ROLLOUT_METRICS,
        policy=passing(layout.POLICY),
        policy_metrics=layout.POLICY_METRICS,
    wildcard_constraints:
        method=methods_with_trigger(phase2=True),
        cycle="(?!00000)[0-9]{5}",


# These rules make the same files for other methods; the constraints above tell which.
ruleorder: triggered_fine_tuned > triggered > collect > phase1 > phase2 > rollout > policy
