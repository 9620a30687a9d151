# Over all models: the figures, the page, and their copy in MLflow.
report_job = job("report")
page_job = job("page")
track_job = job("track")
FIGURES = list_figures(experiment)  # each is written as SVG and PNG
targets += [page_job.output, *(paths.figure(figure.name) for figure in FIGURES)]
if experiment.tracking.enabled:
    targets.append(track_job.output)


rule report:
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
                paths.figure(figure.name),
                category=figure.category,
                labels=figure.labels,
                caption=f"../report/{figure.caption}.rst",
            )
            for figure in FIGURES
        ],
        png=[paths.figure(figure.name).with_suffix(".png") for figure in FIGURES],
    log:
        paths.log("figures"),
    localrule: True
    conda:
        "../envs/baklava.yaml"
    params:
        job=job_file("report"),
    message:
        f"Figures: {report_job.figures}"
    shell:
        "baklava report --job {params.job:q} --log {log:q}"


rule page:
    input:
        rules.report.input,
        page_job.timings_csv,
    output:
        page=page_job.output,
        headline_table=report(
            page_job.headline_table,
            category="Headlines",
            labels={"table": "largest lossless ratio, gain over uniform"},
            caption="../report/headline.rst",
        ),
    log:
        paths.log("page"),
    localrule: True
    conda:
        "../envs/baklava.yaml"
    params:
        job=job_file("page"),
    message:
        "Page with interactive figures: {output.page}"
    shell:
        "baklava page --job {params.job:q} --log {log:q}"


rule track:
    input:
        track_job.summary,
        track_job.headline,
        track_job.records,
        track_job.timings,
        track_job.profiles.values(),
        track_job.measurements if experiment.measure.enabled else [],
        track_job.budgets,
        rules.report.output,
        [
            paths.validation(model, table)
            for model, table in product(experiment.models, VALIDATION)
            if experiment.validation.enabled
        ],
    output:
        track_job.output,
    log:
        paths.log("tracking"),
    localrule: True
    conda:
        "../envs/baklava.yaml"
    params:
        store=fingerprint_store(track_job),
        job=job_file("track"),
    message:
        "Runs for MLflow: {output}"
    shell:
        "baklava track --job {params.job:q} --log {log:q}"
