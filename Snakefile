# The whole benchmark: `snakemake --cores all` (--config experiment=NAME overrides="KEY=VALUE ...").
# Each rule is one call of a `baklava` command; what it does is in the package, what it needs in baklava/experiment/jobs.py.
from snakemake.utils import min_version

min_version("9.20")


include: "workflow/rules/common.smk"


report: "workflow/report/workflow.rst"


localrules:
    all,
    summary,
    claims,
    figures,
    page,
    tracking,


rule all:
    input:
        targets,
    message:
        f"Results: {layout.root}"


onstart:
    claim_results(experiment, overrides)


include: "workflow/rules/profile.smk"
include: "workflow/rules/curves.smk"
include: "workflow/rules/budgets.smk"
include: "workflow/rules/records.smk"
include: "workflow/rules/measurements.smk"
include: "workflow/rules/summary.smk"
include: "workflow/rules/claims.smk"
include: "workflow/rules/validation.smk"
