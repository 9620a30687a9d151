# Per model and task: every sample answered with the full cache and with every method at every ratio, in one job or,
# with evaluate.shards=N, in N of them.
SHARDS = experiment.evaluate.shards
answers = {"records": layout.records("{model}", "{task}"), "timings": layout.timings("{model}", "{task}")}
if SHARDS == 1:
    answers_log = layout.log("records", "{model}", "{task}")
else:
    answers = {kind: temp(layout.shard(whole, "{shard}", SHARDS)) for kind, whole in answers.items()}
    answers_log = layout.log("records", "{model}", "{task}", f"{{shard}}-of-{SHARDS}")


rule records:
    input:
        lambda wildcards: [cell.path for cell in evaluate_job(wildcards).cells],
    output:
        **answers,
    log:
        answers_log,
    benchmark:
        answers_log.with_suffix(".benchmark.tsv")
    conda:
        "../envs/baklava.yaml"
    resources:
        gpu=gpus,
        mem_mb=memory("records"),
        runtime=minutes("records"),
    params:
        model_files=model_files,
        job=lambda wildcards: evaluate_job(wildcards).model_dump_json(),
    message:
        "Answers of {wildcards.model} to {wildcards.task} (progress: {log})"
    shell:
        # 3: some samples failed; the records say which, and the summary counts them.
        "baklava evaluate --job {params.job:q} > {log:q} 2>&1 || [ $? -eq 3 ]"


if SHARDS > 1:

    localrules:
        merged,

    rule merged:
        input:
            lambda wildcards: merge_job(wildcards).records_of_shards,
            lambda wildcards: merge_job(wildcards).timings_of_shards,
        output:
            records=layout.records("{model}", "{task}"),
            timings=layout.timings("{model}", "{task}"),
        log:
            layout.log("records", "{model}", "{task}"),
        conda:
            "../envs/baklava.yaml"
        params:
            job=lambda wildcards: merge_job(wildcards).model_dump_json(),
        message:
            "Answers of {wildcards.model} to {wildcards.task}, from {SHARDS} jobs"
        shell:
            "baklava merge --job {params.job:q} > {log:q} 2>&1"
