# Over all models: one row per cell, the headline numbers, the figures, the page, and their copy in MLflow.
summarize_job = jobs.SummarizeJob.of(experiment, layout)
report_job = jobs.ReportJob.of(experiment, layout)
page_job = jobs.PageJob.of(experiment, layout)
track_job = jobs.TrackJob.of(experiment, layout)


rule summary:
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
        layout.log("summary"),
    conda:
        "../envs/baklava.yaml"
    params:
        job=whole(summarize_job),
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
        report_job.measurements.values(),
        report_job.traces,
        [list(tasks.values()) for tasks in report_job.needle_grids.values()],
    output:
        svg=[
            report(
                layout.figure(figure.name),
                category=figure.category,
                labels=figure.labels,
                caption=f"../report/{figure.caption}.rst",
            )
            for figure in FIGURES
        ],
        png=[layout.figure(figure.name).with_suffix(".png") for figure in FIGURES],
    log:
        layout.log("figures"),
    conda:
        "../envs/baklava.yaml"
    params:
        job=whole(report_job),
    message:
        "Figures: {report_job.figures}"
    shell:
        "baklava report --job {params.job:q} > {log:q} 2>&1"


rule page:
    input:
        rules.figures.input,
    output:
        page=page_job.output,
        headline_table=report(
            page_job.headline_table,
            category="Headlines",
            labels={"table": "largest lossless ratio, gain over uniform"},
            caption="../report/headline.rst",
        ),
    log:
        layout.log("page"),
    conda:
        "../envs/baklava.yaml"
    params:
        job=whole(page_job),
    message:
        "Page with interactive figures: {output.page}"
    shell:
        "baklava page --job {params.job:q} > {log:q} 2>&1"


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
        [
            layout.validation(*one)
            for one in product(experiment.models, jobs.VALIDATION)
            if experiment.validation.enabled
        ],
    output:
        track_job.output,
    log:
        layout.log("tracking"),
    conda:
        "../envs/baklava.yaml"
    params:
        store=store_fingerprint(track_job),
        job=whole(track_job),
    message:
        "Runs for MLflow: {output}"
    shell:
        "baklava track --job {params.job:q} > {log:q} 2>&1"
