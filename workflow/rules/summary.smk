# Over all models: one row per cell, the headline numbers, the figures, and their copy in MLflow.
summarize_job = jobs.SummarizeJob.of(experiment, layout)
report_job = jobs.ReportJob.of(experiment, layout)
track_job = jobs.TrackJob.of(experiment, layout)


rule summary:
    input:
        summarize_job.records,
        summarize_job.timings,
    output:
        csv=report(
            summarize_job.csv, category="Results", labels={"what": "one row per cell"}, caption="../report/summary.rst"
        ),
        parquet=summarize_job.parquet,
        headline=summarize_job.headline,
        timings=summarize_job.timings_csv,
    log:
        layout.log("summary"),
    conda:
        "../envs/baklava.yaml"
    params:
        job=summarize_job.model_dump_json(),
    message:
        "Summary: {output.csv}"
    shell:
        "baklava summarize --job {params.job:q} > {log:q} 2>&1"


rule figures:
    input:
        report_job.summary,
        report_job.headline,
        report_job.profiles.values(),
        report_job.budgets,
    output:
        score_vs_ratio=report(
            layout.figure("score_vs_ratio"),
            category="Results",
            labels={"what": "score against compression ratio"},
            caption="../report/score_vs_ratio.rst",
        ),
        score_vs_kv_bytes=report(
            layout.figure("score_vs_kv_bytes"),
            category="Results",
            labels={"what": "score against KV bytes"},
            caption="../report/score_vs_kv_bytes.rst",
        ),
        importance=[
            report(
                layout.figure(f"importance_{model}"),
                category="KV caches",
                labels={"what": "importance", "model": model},
                caption="../report/importance.rst",
            )
            for model in experiment.models
        ],
        budgets=[
            report(
                layout.figure(f"budgets_{model}"),
                category="KV caches",
                labels={"what": "budgets", "model": model},
                caption="../report/budgets.rst",
            )
            for model in experiment.models
        ],
        png=[layout.figure(name).with_suffix(".png") for name in FIGURES],
    log:
        layout.log("figures"),
    conda:
        "../envs/baklava.yaml"
    params:
        job=report_job.model_dump_json(),
    message:
        "Figures: {report_job.figures}"
    shell:
        "baklava report --job {params.job:q} > {log:q} 2>&1"


rule tracking:
    input:
        track_job.summary,
        track_job.headline,
        track_job.records,
        track_job.timings,
        track_job.profiles.values(),
        track_job.measurements if experiment.measure.enabled else [],
        track_job.budgets,
        rules.figures.output,
    output:
        track_job.output,
    log:
        layout.log("tracking"),
    conda:
        "../envs/baklava.yaml"
    params:
        job=track_job.model_dump_json(),
    message:
        "Runs for MLflow: {output}"
    shell:
        "baklava track --job {params.job:q} > {log:q} 2>&1"
