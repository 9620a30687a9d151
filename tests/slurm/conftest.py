"""One SLURM and one undisturbed run for all tests."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from one_node import ACCOUNT, PARTITION, OneNode
from submission import Workflow


@pytest.fixture(scope="session")
def cluster() -> Iterator[OneNode]:
    with OneNode() as one:
        yield one


@pytest.fixture(scope="session")
def profile(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("profile")
    text = (repository / "workflow/profiles/slurm/config.yaml").read_text()
    for template, filled in (
        ("# slurm_account: NAME", f"slurm_account: {ACCOUNT}"),
        ("# slurm_partition: NAME", f"slurm_partition: {PARTITION}"),
        ("# slurm-status-command: squeue", "slurm-status-command: squeue\nslurm-init-seconds-before-status-checks: 2"),
    ):
        assert template in text
        text = text.replace(template, filled)
    text = text.replace(": 4\n", ": 1\n")  # threads: the machine that runs this test may have two cores
    (folder / "config.yaml").write_text(text)
    return folder


@pytest.fixture(scope="session")
def finished(cluster: OneNode, profile: Path, tmp_path_factory: pytest.TempPathFactory) -> Workflow:
    """The small experiment, run to its end without disturbance."""
    workflow = Workflow(cluster, tmp_path_factory.mktemp("finished"), profile)
    assert workflow.run() == 0, workflow.output
    return workflow


@pytest.fixture
def without_records(finished: Workflow, tmp_path: Path) -> Workflow:
    """The same in another folder, with everything but the answers there."""
    folder = tmp_path / "again"
    shutil.copytree(finished.folder, folder)
    for name in ("records", "timings", "store", "logs/records"):
        shutil.rmtree(folder / "results/small" / name)
    (folder / "snakemake.out").unlink()
    return Workflow(finished.cluster, folder, finished.profile)
