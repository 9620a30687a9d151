# Per model: would another profile rank the KV caches alike, and how well does each estimator rank them?


rule validate:
    input:
        prompts=paths.prompts("{model}"),
        profile=paths.profile("{model}"),
        curves=lambda wildcards: job("validate", wildcards).curves.values(),
        budgets=lambda wildcards: [cell.path for cell in job("validate", wildcards).cells],
    output:
        tables=[paths.validation("{model}", table) for table in VALIDATION],
        svg=[
            report(
                paths.validation("{model}", table).with_suffix(".svg"),
                category="Validation",
                labels={"figure": table, "model": "{model}"},
                caption=f"../report/{table}.rst",
            )
            for table in VALIDATION
        ],
        png=[paths.validation("{model}", table).with_suffix(".png") for table in VALIDATION],
    log:
        paths.log("validation", "{model}"),
    benchmark:
        paths.log("validation", "{model}").with_suffix(".benchmark.tsv")
    conda:
        "../envs/baklava.yaml"
    threads: cpu_threads("validate")
    resources:
        gpu=gpus,
        mem_mb=memory("validate"),
        runtime=minutes("validate"),
    params:
        model_files=model_files,
        job=job_file("validate"),
    message:
        "Validation of the profile of {wildcards.model} (progress: {log})"
    shell:
        "baklava validate --job {params.job:q} --log {log:q}"


if experiment.validation.enabled:
    targets += [paths.validation(model, "regret") for model in experiment.models]
