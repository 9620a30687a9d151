# Per model and eviction policy: how the loss rises as each KV cache alone keeps less. Runs where an allocator needs it.


rule curves:
    input:
        layout.prompts("{model}"),
    output:
        layout.curves("{model}", "{eviction}"),
    log:
        layout.log("curves", "{model}", "{eviction}"),
    benchmark:
        layout.log("curves", "{model}", "{eviction}").with_suffix(".benchmark.tsv")
    conda:
        "../envs/baklava.yaml"
    resources:
        gpu=gpus,
        mem_mb=memory("curves"),
        runtime=minutes("curves"),
    params:
        model_files=model_files,
        job=lambda wildcards: jobs.CurvesJob.of(
            experiment, layout, wildcards.model, wildcards.eviction
        ).model_dump_json(),
    message:
        "Loss of {wildcards.model} as each KV cache alone shrinks, {wildcards.eviction} (progress: {log})"
    shell:
        "baklava curves --job {params.job:q} > {log:q} 2>&1"
