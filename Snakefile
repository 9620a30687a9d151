# The whole benchmark: `baklava run experiment=NAME KEY=VALUE ...`, or `snakemake --cores all` with
# `--config experiment=NAME overrides="KEY=VALUE ..."`.
# Each rule is one call of the `baklava` command of its name; what it does is in the package, and which settings and files
# it depends on is in baklava/experiment/jobs/.
from snakemake.utils import min_version

min_version("9.20")


include: "workflow/rules/common.smk"
include: "workflow/rules/calibration.smk"
include: "workflow/rules/profiling.smk"
include: "workflow/rules/search.smk"
include: "workflow/rules/evaluation.smk"
include: "workflow/rules/analysis.smk"
include: "workflow/rules/reports.smk"
include: "workflow/rules/validation.smk"


report: "workflow/report/workflow.rst"


rule all:
    default_target: True
    input:
        targets,
    localrule: True
    message:
        f"Results: {paths.root}"


onstart:
    claim_results(experiment, overrides)


onsuccess:
    show_results()
