"""Running the workflow in a folder of its own, and reading what it says."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Run:
    """What a call of snakemake ended with."""

    status: int
    output: str

    @property
    def planned(self) -> dict[str, int]:
        """Jobs per rule, from the table under "Job stats"; empty where nothing is to be done."""
        table = self.output.partition("Job stats:")[2].partition("\n\n")[0]
        rows = re.findall(r"^(\w+) +(\d+)$", table, flags=re.MULTILINE)
        return {rule: int(count) for rule, count in rows if rule not in ("all", "total")}


@pytest.fixture(scope="session")
def snakemake(repository: Path) -> Callable[..., Run]:
    """`snakemake(folder, *options, overrides=...)` runs the repository's workflow, by default on experiment=smoke.

    `folder` is the working folder, so that everything it writes is in there.
    """

    def run(folder: Path, *options: str, **config: str) -> Run:
        command = [sys.executable, "-m", "snakemake", "--snakefile", str(repository / "Snakefile"), *options]
        command += ["--config", *(f"{key}={value}" for key, value in {"experiment": "smoke", **config}.items())]
        done = subprocess.run(
            command, cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
        )
        return Run(done.returncode, done.stdout)

    return run
