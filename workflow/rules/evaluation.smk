# Per model and task: every sample answered with the full cache and with every method at every ratio, in one job or,
# with evaluate.shards=N, in N of them. Per model: memory and speed of every cell by itself.
SHARDS = experiment.evaluate.shards
answers = {
    "records": paths.records("{model}", "{task}"),
    "timings": paths.timings("{model}", "{task}"),
}
if SHARDS == 1:
    answers_log = paths.log("records", "{model}", "{task}")
else:
    answers = {kind: temp(paths.shard(file, "{shard}", SHARDS)) for kind, file in answers.items()}
    answers_log = paths.log("records", "{model}", "{task}", f"{{shard}}-of-{SHARDS}")


rule evaluate:
    input:
        lambda wildcards: [cell.path for cell in job("evaluate", wildcards).cells],
    output:
        **answers,
    log:
        answers_log,
    benchmark:
        answers_log.with_suffix(".benchmark.tsv")
    conda:
        "../envs/baklava.yaml"
    threads: cpu_threads("evaluate")
    resources:
        gpu=gpus,
        mem_mb=memory("evaluate"),
        runtime=minutes("evaluate"),
    params:
        model_files=model_files,
        job=job_file("evaluate"),
    message:
        "Answers of {wildcards.model} to {wildcards.task} (progress: {log})"
    shell:
        # 3: some samples failed; the records say which, and the summary counts them.
        "baklava evaluate --job {params.job:q} --log {log:q} || [ $? -eq 3 ]"


if SHARDS > 1:

    rule merge:
        input:
            lambda wildcards: job("merge", wildcards).records_of_shards,
            lambda wildcards: job("merge", wildcards).timings_of_shards,
        output:
            records=paths.records("{model}", "{task}"),
            timings=paths.timings("{model}", "{task}"),
        log:
            paths.log("records", "{model}", "{task}"),
        localrule: True
        conda:
            "../envs/baklava.yaml"
        params:
            job=job_file("merge"),
        message:
            f"Answers of {{wildcards.model}} to {{wildcards.task}}, from {SHARDS} jobs"
        shell:
            "baklava merge --job {params.job:q} --log {log:q}"


rule measure:
    input:
        lambda wildcards: [cell.path for cell in job("measure", wildcards).cells],
    output:
        paths.measurements("{model}"),
    log:
        paths.log("measurements", "{model}"),
    benchmark:
        paths.log("measurements", "{model}").with_suffix(".benchmark.tsv")
    conda:
        "../envs/baklava.yaml"
    threads: experiment.resources_of("measure").threads or os.cpu_count()  # it times cells, so it has the machine to itself
    resources:
        gpu=gpus,
        mem_mb=memory("measure"),
        runtime=minutes("measure"),
    params:
        model_files=model_files,
        job=job_file("measure"),
    message:
        "Memory and speed of {wildcards.model} (progress: {log})"
    shell:
        "baklava measure --job {params.job:q} --log {log:q}"


if experiment.measure.enabled:
    targets += [paths.measurements(model) for model in experiment.models]
