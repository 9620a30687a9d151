# Per model and task: every sample answered with the full cache and with every method at every ratio.


rule records:
    input:
        lambda wildcards: [
            cell.path for cell in jobs.EvaluateJob.of(experiment, layout, wildcards.model, wildcards.task).cells
        ],
    output:
        records=layout.records("{model}", "{task}"),
        timings=layout.timings("{model}", "{task}"),
    log:
        layout.log("records", "{model}", "{task}"),
    benchmark:
        layout.log("records", "{model}", "{task}").with_suffix(".benchmark.tsv")
    conda:
        "../envs/baklava.yaml"
    resources:
        gpu=gpus,
    params:
        job=lambda wildcards: jobs.EvaluateJob.of(experiment, layout, wildcards.model, wildcards.task).model_dump_json(),
    message:
        "Answers of {wildcards.model} to {wildcards.task} (progress: {log})"
    shell:
        # 3: some samples failed; the records say which, and the summary counts them.
        "baklava evaluate --job {params.job:q} > {log:q} 2>&1 || [ $? -eq 3 ]"
