# Over all models: one row per cell with the headline numbers, and the criteria that an allocator is held to.
summarize_job = job("summarize")
claims_job = job("claims")
targets += [summarize_job.csv, summarize_job.headline]


rule summarize:
    input:
        summarize_job.records,
        summarize_job.timings,
    output:
        csv=report(
            summarize_job.csv,
            category="Headlines",
            labels={"table": "every cell (CSV)"},
            caption="../report/summary.rst",
        ),
        parquet=summarize_job.parquet,
        headline=summarize_job.headline,
        timings=summarize_job.timings_csv,
    log:
        paths.log("summary"),
    localrule: True
    conda:
        "../envs/baklava.yaml"
    params:
        job=job_file("summarize"),
    message:
        "Summary: {output.csv}"
    shell:
        "baklava summarize --job {params.job:q} --log {log:q}"


rule claims:
    input:
        claims_job.records,
    output:
        json=claims_job.output,
        markdown=report(
            claims_job.markdown,
            category="Headlines",
            labels={"table": "claims and criteria"},
            caption="../report/claims.rst",
        ),
    log:
        paths.log("claims"),
    localrule: True
    conda:
        "../envs/baklava.yaml"
    params:
        job=job_file("claims"),
    message:
        "Claims: {output.markdown}"
    shell:
        "baklava claims --job {params.job:q} --log {log:q}"


if experiment.claims.enabled:
    targets += [claims_job.output, claims_job.markdown]
