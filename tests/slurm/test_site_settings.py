"""What docs/slurm.md has administrators set, as sbatch receives it from small rules with the names of ours."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from one_node import GPUS, OneNode

RULES = """
rule all:
    input: expand("{rule}-{i}.txt", rule=["allocate", "evaluate"], i=range(2))
rule allocate:
    output: "allocate-{i}.txt"
    resources: mem_mb=700, runtime=5
    shell: "env > {output}"
rule evaluate:
    output: "evaluate-{i}.txt"
    resources: gpu=1, mem_mb=900, runtime=5
    shell: "env > {output}"
"""


@pytest.fixture(scope="module")
def submitted(cluster: OneNode, profile: Path, repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the rules ran, with every setting of the page in the profile."""
    folder = tmp_path_factory.mktemp("site")
    settings = yaml.safe_load((profile / "config.yaml").read_text())
    page = (repository / "docs/slurm.md").read_text()
    for block in re.findall(r"^```yaml\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL):
        settings |= yaml.safe_load(block.replace("gpu:a100", "gpu:fake").replace("4000", "950"))
    settings["seconds-between-status-checks"] = 5  # the page asks less often, and the test would wait
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    (folder / "Snakefile").write_text(RULES)
    command = [sys.executable, "-m", "snakemake", "--profile", str(folder)]
    environment = {**cluster.environment, "LOADEDMODULES": "cuda/12", "SLURM_EXPORT_ENV": "NONE"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def jobs(cluster: OneNode, folder: Path, rule: str) -> list[str]:
    known = cluster.run("scontrol", "show", "job", "--oneliner").splitlines()
    return [job for job in known if f"WorkDir={folder} " in job and re.search(rf"Comment=\S*{rule}", job)]


def test_evaluate_is_an_array_with_gres_memory_per_cpu_and_other_options(cluster: OneNode, submitted: Path) -> None:
    tasks = jobs(cluster, submitted, "evaluate")
    assert len(tasks) == 2
    assert len({re.search(r"ArrayJobId=(\d+)", task)[1] for task in tasks}) == 1  # type: ignore[index]
    for task in tasks:
        assert "TresPerNode=gres:gpu:fake:1" in task and "TresPerJob" not in task
        assert re.search(r"MinMemoryCPU=95\dM", task)  # the plugin adds what the list of tasks takes
        assert "Nice=100 " in task


def test_small_jobs_of_a_group_are_one_job_that_asks_for_their_sum(cluster: OneNode, submitted: Path) -> None:
    [job] = jobs(cluster, submitted, "allocate")
    assert "MinMemoryNode=1400M" in job and "gres" not in job


def test_jobs_have_the_environment_and_the_modules_of_the_shell_that_submits(submitted: Path) -> None:
    for path in submitted.glob("*-*.txt"):
        assert "LOADEDMODULES=cuda/12\n" in path.read_text()
    devices = [re.search(r"CUDA_VISIBLE_DEVICES=(\d+)", path.read_text()) for path in submitted.glob("evaluate-*.txt")]
    assert all(device is not None and int(device[1]) < GPUS for device in devices)
