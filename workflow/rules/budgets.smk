# Per model and method: the budgets for every ratio, found by one search.


rule budgets:
    input:
        prompts=layout.prompts("{model}"),
        profile=layout.profile("{model}"),
        curves=curves_of,
    output:
        budgets=[
            layout.budgets("{model}", "{allocator}", "{eviction}", ratio) for ratio in experiment.compressed_ratios
        ],
        trace=layout.search_trace("{model}", "{allocator}", "{eviction}"),
    log:
        layout.log("budgets", "{model}", "{allocator}", "{eviction}"),
    benchmark:
        layout.log("budgets", "{model}", "{allocator}", "{eviction}").with_suffix(".benchmark.tsv")
    conda:
        "../envs/baklava.yaml"
    resources:
        gpu=gpus,
        mem_mb=memory("budgets"),
        runtime=minutes("budgets"),
    params:
        model_files=model_files,
        job=lambda wildcards: jobs.AllocateJob.of(
            experiment, layout, wildcards.model, wildcards.allocator, wildcards.eviction
        ).model_dump_json(),
    message:
        "Budgets of {wildcards.model} by {wildcards.allocator} x {wildcards.eviction} (progress: {log})"
    shell:
        "baklava allocate --job {params.job:q} > {log:q} 2>&1"
