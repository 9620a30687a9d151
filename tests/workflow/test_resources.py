"""What the workflow offers to jobs and what they ask for, seen from inside a Snakefile."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SEEN = """
import json
include: "{repository}/workflow/rules/common.smk"
class Asks:
    model = "tiny-llama"
with open("seen.json", "w") as file:
    json.dump({{
        "gpu": workflow.global_resources.get("gpu"),
        "jobs_per_gpu": os.environ.get(JOBS_PER_GPU),
        "asks": gpus(Asks),
        "mem_mb": [memory("evaluate")(Asks, attempt=attempt) for attempt in (1, 2, 3)],
        "runtime": minutes("evaluate"),
    }}, file, default=lambda resource: resource.value)
rule all:
"""


@pytest.fixture
def seen(
    snakemake: Callable[..., Any], repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., dict[str, Any]]:
    (tmp_path / "Snakefile").write_text(SEEN.format(repository=repository))
    monkeypatch.delenv("BAKLAVA_JOBS_PER_GPU", raising=False)

    def look(devices: str, *options: str, **config: str) -> dict[str, Any]:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", devices)
        run = snakemake(tmp_path, "--snakefile", "Snakefile", "-n", *options, **config)
        assert run.status == 0, run.output
        return json.loads((tmp_path / "seen.json").read_text())

    return look


def test_a_gpu_job_per_device_or_as_many_as_the_user_asks_for(seen: Callable[..., dict[str, Any]]) -> None:
    own = seen("0,1")
    assert (own["gpu"], own["jobs_per_gpu"], own["asks"]) == (2, "1", 1)
    shared = seen("0,1", "--resources", "gpu=3")
    assert (shared["gpu"], shared["jobs_per_gpu"], shared["asks"]) == (3, "2", 1)


def test_without_a_gpu_jobs_ask_for_none(seen: Callable[..., dict[str, Any]]) -> None:
    nothing = seen("")
    assert (nothing["gpu"], nothing["jobs_per_gpu"], nothing["asks"]) == (None, None, 0)


@pytest.mark.parametrize("stage", ["evaluate", "records"])  # `records`: as it was called before
def test_each_attempt_asks_for_more_memory(seen: Callable[..., dict[str, Any]], stage: str) -> None:
    asked = seen("", overrides=f"resources.{stage}.mem_mb=7000 resources.{stage}.runtime=20")
    assert (asked["mem_mb"], asked["runtime"]) == ([7000, 14000, 21000], 20)
