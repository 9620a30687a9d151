"""`baklava run`: the workflow by its short name."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from baklava.errors import UserError
from baklava.experiment.compose import conf_folder
from baklava.experiment.overrides import Parts, chosen
from baklava.experiment.snakemake_config import DEFAULT, encoded

# With one of these, how much runs at once is said there.
_OWN_CORES = {"--cores", "-c", "--jobs", "-j", "--profile", "--executor", "-e"}


def run_workflow(overrides: Sequence[str], options: Sequence[str] = ()) -> None:
    """Become Snakemake, which runs the workflow with these settings, and with options of its own.

    It is the Snakemake of this Python, so that no environment needs to be active. Raises `UserError` for an argument
    that is no setting, and where there is no workflow.
    """
    for argument in overrides:
        if Parts.of(argument) is None and not argument.startswith("~"):
            raise UserError(f"{argument}: not a setting (KEY=VALUE); options of Snakemake come after --")
    snakefile = conf_folder().parent / "Snakefile"
    if not snakefile.is_file():
        raise UserError(f"{snakefile}: no workflow there; run from the repository")
    experiment = f"experiment={chosen(overrides, 'experiment') or DEFAULT}"
    others = [override for override in overrides if not override.startswith("experiment=")]
    names = {option.partition("=")[0] if option.startswith("--") else option[:2] for option in options}
    if names & {"--config", "-C"}:
        raise UserError("--config: settings are given as KEY=VALUE before the --")
    command = [sys.executable, "-m", "snakemake", "--config", encoded([experiment, *others])]
    command += ["--snakefile", str(snakefile)]  # an option, as --config would take what comes next
    command += [] if names & _OWN_CORES else ["--cores", "all"]
    sys.stdout.flush()
    os.execv(sys.executable, [*command, *options])
