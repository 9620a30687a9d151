# Once per model: calibration prompts in the model's tokens, and the importance of every KV cache.


rule prompts:
    output:
        layout.prompts("{model}"),
    log:
        layout.log("prompts", "{model}"),
    benchmark:
        layout.log("prompts", "{model}").with_suffix(".benchmark.tsv")
    conda:
        "../envs/baklava.yaml"
    resources:
        gpu=lambda wildcards: gpus(wildcards) * experiment.calibration.needs_model,
        mem_mb=memory("prompts"),
        runtime=minutes("prompts"),
    params:
        model_files=model_files,
        job=lambda wildcards: jobs.CalibrateJob.of(experiment, layout, wildcards.model).model_dump_json(),
    message:
        "Calibration prompts of {wildcards.model}"
    shell:
        "baklava calibrate --job {params.job:q} > {log:q} 2>&1"


rule profile:
    input:
        layout.prompts("{model}"),
    output:
        layout.profile("{model}"),
    log:
        layout.log("profile", "{model}"),
    benchmark:
        layout.log("profile", "{model}").with_suffix(".benchmark.tsv")
    conda:
        "../envs/baklava.yaml"
    resources:
        gpu=gpus,
        mem_mb=memory("profile"),
        runtime=minutes("profile"),
    params:
        model_files=model_files,
        job=lambda wildcards: jobs.ProfileJob.of(experiment, layout, wildcards.model).model_dump_json(),
    message:
        "Importance of every KV cache of {wildcards.model} (progress: {log})"
    shell:
        "baklava profile --job {params.job:q} > {log:q} 2>&1"
