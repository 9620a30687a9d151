# Once per model: calibration prompts in the model's tokens.


rule calibrate:
    output:
        paths.prompts("{model}"),
    log:
        paths.log("prompts", "{model}"),
    benchmark:
        paths.log("prompts", "{model}").with_suffix(".benchmark.tsv")
    conda:
        "../envs/baklava.yaml"
    threads: cpu_threads("calibrate")
    resources:
        gpu=lambda wildcards: gpus(wildcards) * experiment.calibration.needs_model,
        mem_mb=memory("calibrate"),
        runtime=minutes("calibrate"),
    params:
        model_files=model_files,
        job=job_file("calibrate"),
    message:
        "Calibration prompts of {wildcards.model}"
    shell:
        "baklava calibrate --job {params.job:q} --log {log:q}"
