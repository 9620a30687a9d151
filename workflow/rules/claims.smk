# Over all models: the allocator under test against every other one, and its criteria, met or missed.
claims_job = jobs.ClaimsJob.of(experiment, layout)


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
        layout.log("claims"),
    conda:
        "../envs/baklava.yaml"
    params:
        job=whole(claims_job),
    message:
        "Claims: {output.markdown}"
    shell:
        "baklava claims --job {params.job:q} > {log:q} 2>&1"


if experiment.claims.enabled:

    onsuccess:
        print(layout.log("claims").read_text(encoding="utf-8"))
