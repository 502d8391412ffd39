# Real data: one shard a cycle, and blocks of shards, and of blocks, so that the inputs of a late cycle stay few.


rule collect:
    input:
        policy=reads("collect", "previous_policy"),
        previous=reads("collect", "previous_shard"),
        initial_data=reads("collect", "initial_data"),
    output:
        layout.SHARD,
    log:
        layout.LOG.replace("{stage}", "collect"),
    benchmark:
        layout.BENCHMARK.replace("{stage}", "collect")
    conda:
        "../envs/usbpo.yaml"
    threads: 1
    resources:
        runtime=runtime_of("collect"),
        mem_mb=memory_of("collect"),
    params:
        options=options_of("collect"),
        code=code_of("collect"),
        environment=of_run("environment_code"),
        files=of_run("environment_files"),
        initial_data=of_cycle("initial_data_checksum"),
    message:
        "collect: real steps of {wildcards.task}/{wildcards.method}/seed-{wildcards.seed}, cycle {wildcards.cycle}"
    shell:
        "usbpo collect --policy {input.policy} --previous {input.previous} --initial-data {input.initial_data} "
        "--output {output} "
        "--task {wildcards.task} --seed {wildcards.seed} --cycle {wildcards.cycle} {params.options} > {log} 2>&1"


rule block:
    input:
        reads_of_block,
    output:
        layout.BLOCK,
    log:
        layout.LOG.format(task="{task}", method="{method}", seed="{seed}", cycle="blocks", stage="{block}"),
    benchmark:
        layout.BENCHMARK.format(task="{task}", method="{method}", seed="{seed}", cycle="blocks", stage="{block}")
    conda:
        "../envs/usbpo.yaml"
    threads: 1
    resources:
        runtime=runtime_of("block"),
        mem_mb=memory_of("block"),
    params:
        code=code_of("block"),
    message:
        "block: gather real data of {wildcards.task}/{wildcards.method}/seed-{wildcards.seed}, block {wildcards.block}"
    shell:
        "usbpo block --parts {input} --output {output} > {log} 2>&1"
