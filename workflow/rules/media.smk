# Beside the results, on request: TensorBoard's event files, and videos of policies. No other target needs them.


rule tensorboard:
    input:
        event_files,


rule event_file:
    input:
        event_inputs,
    output:
        update(layout.TENSORBOARD),  # a running TensorBoard follows a file that grows, and no other in its place
    log:
        f"{layout.RUN}/logs/tensorboard.log",
    benchmark:
        f"{layout.RUN}/benchmarks/tensorboard.tsv"
    conda:
        "../envs/usbpo.yaml"
    threads: 1
    resources:
        mem_mb=1000,
    params:
        cycles=cycles_of_run,
        code=fingerprint("formats.tensorboard"),
    message:
        "event_file: TensorBoard's scalars of {wildcards.task}/{wildcards.method}/seed-{wildcards.seed}"
    shell:
        "usbpo tensorboard {wildcards.task}/{wildcards.method}/seed-{wildcards.seed} --cycles {params.cycles} "
        "--output data/tensorboard > {log} 2>&1"


rule videos:
    input:
        videos,


rule video:
    input:
        layout.POLICY,
    output:
        layout.VIDEO,
    log:
        layout.LOG.replace("{stage}", "video"),
    benchmark:
        layout.BENCHMARK.replace("{stage}", "video")
    conda:
        "../envs/usbpo.yaml"
    threads: 1
    resources:
        mem_mb=1000,
    params:
        options=options_of("video"),
        code=[fingerprint("formats.video"), fingerprint("formats.film")],
        environment=of_run("environment_code"),
        files=of_run("environment_files"),
    message:
        "video: the policy of {wildcards.task}/{wildcards.method}/seed-{wildcards.seed}, cycle {wildcards.cycle}"
    shell:
        "usbpo video {wildcards.task}/{wildcards.method}/seed-{wildcards.seed} --cycle {wildcards.cycle} "
        "--output {output} {params.options} > {log} 2>&1"
