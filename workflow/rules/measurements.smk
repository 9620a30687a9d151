# Per model: memory and speed of every cell by itself, with the device to itself.


rule measurements:
    input:
        lambda wildcards: [cell.path for cell in jobs.MeasureJob.of(experiment, layout, wildcards.model).cells],
    output:
        layout.measurements("{model}"),
    log:
        layout.log("measurements", "{model}"),
    benchmark:
        layout.log("measurements", "{model}").with_suffix(".benchmark.tsv")
    conda:
        "../envs/baklava.yaml"
    threads: os.cpu_count()
    resources:
        gpu=gpus,
        mem_mb=memory("measurements"),
        runtime=minutes("measurements"),
    params:
        model_files=model_files,
        job=lambda wildcards: jobs.MeasureJob.of(experiment, layout, wildcards.model).model_dump_json(),
    message:
        "Memory and speed of {wildcards.model} (progress: {log})"
    shell:
        "baklava measure --job {params.job:q} > {log:q} 2>&1"
