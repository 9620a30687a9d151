# Per model: would another profile rank the KV caches alike, and how well does each estimator rank them?


rule validation:
    input:
        prompts=layout.prompts("{model}"),
        profile=layout.profile("{model}"),
        curves=lambda wildcards: validate_job(wildcards).curves.values(),
        budgets=lambda wildcards: [cell.path for cell in validate_job(wildcards).cells],
    output:
        tables=[layout.validation("{model}", what) for what in jobs.VALIDATION],
        svg=[
            report(
                layout.validation("{model}", what).with_suffix(".svg"),
                category="Validation",
                labels={"figure": what, "model": "{model}"},
                caption=f"../report/{what}.rst",
            )
            for what in jobs.VALIDATION
        ],
        png=[layout.validation("{model}", what).with_suffix(".png") for what in jobs.VALIDATION],
    log:
        layout.log("validation", "{model}"),
    benchmark:
        layout.log("validation", "{model}").with_suffix(".benchmark.tsv")
    conda:
        "../envs/baklava.yaml"
    resources:
        gpu=gpus,
        mem_mb=memory("validation"),
        runtime=minutes("validation"),
    params:
        model_files=model_files,
        job=lambda wildcards: validate_job(wildcards).model_dump_json(),
    message:
        "Validation of the profile of {wildcards.model} (progress: {log})"
    shell:
        "baklava validate --job {params.job:q} > {log:q} 2>&1"
