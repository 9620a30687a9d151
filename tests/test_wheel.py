"""A wheel brings the workflow and its configuration along, so that the commands work outside of the repository."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def test_an_installed_package_begins_a_project_in_an_empty_folder(repository: Path, tmp_path: Path) -> None:
    installed, project = tmp_path / "site", tmp_path / "project"
    project.mkdir()
    build = ["setup.py", "-q", "build_py", "--build-lib", str(installed)]
    subprocess.run([sys.executable, *build], cwd=repository, check=True)

    def baklava(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "baklava", *arguments]
        environment = {**os.environ, "PYTHONPATH": str(installed)}
        return subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)

    made = baklava("new", "mine", "experiment=smoke")
    assert made.stdout.startswith(f"{project}/conf/experiment/mine.yaml; run it with `baklava run"), made.stderr
    for name in ("Snakefile", "conf/config.yaml", "workflow/rules/common.smk", "workflow/profiles/slurm/config.yaml"):
        assert (project / name).read_bytes() == (repository / name).read_bytes()
    (project / "conf").rename(project / "kept")
    again = baklava("new", "other")
    assert (again.returncode, again.stderr.count("\n")) == (2, 1)
    assert f"{project}/" in again.stderr and "there already; run `baklava new` in a folder without it" in again.stderr
    assert not (project / "conf").exists()
