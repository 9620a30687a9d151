# Per model and method: the budgets for every ratio, from one search.


rule allocate:
    input:
        prompts=paths.prompts("{model}"),
        profile=paths.profile("{model}"),
        curves=lambda wildcards: job("allocate", wildcards).curves or [],
    output:
        budgets=[paths.budgets("{model}", "{allocator}", "{eviction}", ratio) for ratio in experiment.compressed_ratios],
        trace=paths.search_trace("{model}", "{allocator}", "{eviction}"),
    log:
        paths.log("budgets", "{model}", "{allocator}", "{eviction}"),
    benchmark:
        paths.log("budgets", "{model}", "{allocator}", "{eviction}").with_suffix(".benchmark.tsv")
    conda:
        "../envs/baklava.yaml"
    threads: cpu_threads("allocate")
    resources:
        gpu=gpus_of_search,
        mem_mb=memory("allocate"),
        runtime=minutes("allocate"),
    params:
        model_files=model_files,
        job=job_file("allocate"),
    message:
        "Budgets of {wildcards.model} by {wildcards.allocator} x {wildcards.eviction} (progress: {log})"
    shell:
        "baklava allocate --job {params.job:q} --log {log:q}"
