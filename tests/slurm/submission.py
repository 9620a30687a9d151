"""The smallest experiment that has every stage, run by Snakemake through SLURM."""

from __future__ import annotations

import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from one_node import OneNode, wait_until

RECORDS = "results/small/records/tiny-llama/niah_single_1.parquet"
PLENTY = 1800  # seconds that anything may take; jobs start slowly where cores are few

OVERRIDES = (
    "name=small task=niah_single_1 allocator=uniform ratios=[0,0.5] tracking=none "
    "calibration.n_profile=1 calibration.n_search=2 calibration.length=400 "
    "profile.estimators=[value_output_cosine] evaluate.n_samples=2 evaluate.length=400 "
    "resources.calibrate.mem_mb=2000 resources.profile.mem_mb=2100 resources.allocate.mem_mb=2200 "
    "resources.evaluate.mem_mb=2300 resources.evaluate.runtime=45"
)


@dataclass(frozen=True)
class Workflow:
    """Snakemake in a folder of its own, with the profile as its comments tell users to fill it in."""

    cluster: OneNode
    folder: Path
    profile: Path

    def start(self, *options: str, overrides: str = "") -> subprocess.Popen[str]:
        repository = Path(__file__).resolve().parents[2]
        command = [sys.executable, "-m", "snakemake", "--snakefile", str(repository / "Snakefile")]
        command += ["--profile", str(self.profile), *options]
        command += ["--config", "experiment=smoke", f"overrides={OVERRIDES} {overrides}"]
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # started by a shell in the background: so would it be
            signal.signal(signal.SIGINT, signal.default_int_handler)
        out = (self.folder / "snakemake.out").open("a")
        return subprocess.Popen(
            command, cwd=self.folder, env=self.cluster.environment, text=True, stdout=out, stderr=subprocess.STDOUT
        )

    def run(self, *options: str, overrides: str = "") -> int:
        return ended(self.start(*options, overrides=overrides))

    @property
    def output(self) -> str:
        return (self.folder / "snakemake.out").read_text()

    @property
    def records(self) -> Path:
        return self.folder / RECORDS

    def jobs(self, rule: str) -> list[str]:
        """What SLURM knows of the jobs of a rule that were submitted from this folder, oldest first."""
        known = self.cluster.run("scontrol", "show", "job", "--oneliner").splitlines()
        return [one for one in known if f"WorkDir={self.folder} " in one and f"Comment=rule_{rule}_" in one]

    def wait_for_job(self, rule: str, state: str) -> str:
        """The number of the rule's job, once it is in that state."""
        wait_until(
            lambda: any(f"JobState={state} " in one for one in self.jobs(rule)),
            seconds=PLENTY,
            what=f"a job of {rule} is {state} ({self.output[-2000:]})",
        )
        return next(one for one in self.jobs(rule) if f"JobState={state} " in one).split()[0].removeprefix("JobId=")


def ended(process: subprocess.Popen[str]) -> int:
    """Its exit status; one that hangs is interrupted as Ctrl-C would."""
    try:
        return process.wait(PLENTY)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        process.wait(PLENTY)
        raise
