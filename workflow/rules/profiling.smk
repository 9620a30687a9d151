# Once per model: the importance of every KV cache. Where an allocator needs it, per model and eviction policy: how the
# loss rises as each KV cache alone keeps less.


rule profile:
    input:
        paths.prompts("{model}"),
    output:
        paths.profile("{model}"),
    log:
        paths.log("profile", "{model}"),
    benchmark:
        paths.log("profile", "{model}").with_suffix(".benchmark.tsv")
    conda:
        "../envs/baklava.yaml"
    threads: cpu_threads("profile")
    resources:
        gpu=gpus,
        mem_mb=memory("profile"),
        runtime=minutes("profile"),
    params:
        model_files=model_files,
        job=job_file("profile"),
    message:
        "Importance of every KV cache of {wildcards.model} (progress: {log})"
    shell:
        "baklava profile --job {params.job:q} --log {log:q}"


rule curves:
    input:
        paths.prompts("{model}"),
    output:
        paths.curves("{model}", "{eviction}"),
    log:
        paths.log("curves", "{model}", "{eviction}"),
    benchmark:
        paths.log("curves", "{model}", "{eviction}").with_suffix(".benchmark.tsv")
    conda:
        "../envs/baklava.yaml"
    threads: cpu_threads("curves")
    resources:
        gpu=gpus,
        mem_mb=memory("curves"),
        runtime=minutes("curves"),
    params:
        model_files=model_files,
        job=job_file("curves"),
    message:
        "Loss of {wildcards.model} as each KV cache alone shrinks, {wildcards.eviction} (progress: {log})"
    shell:
        "baklava curves --job {params.job:q} --log {log:q}"
