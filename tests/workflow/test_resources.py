"""What the workflow offers to jobs and what they ask for, seen from inside a Snakefile."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

SEEN = """
import json
from argparse import Namespace
include: "{repository}/workflow/rules/common.smk"
class Asks:
    model = "tiny-llama"
with open("seen.json", "w") as file:
    json.dump({{
        "gpu": workflow.global_resources.get("gpu"),
        "jobs_per_gpu": os.environ.get(JOBS_PER_GPU),
        "asks": gpus(Asks),
        "asks_to_allocate": {{
            name: gpus_of_search(Namespace(model="tiny-llama", allocator=name)) for name in experiment.allocators
        }},
        "mem_mb": [memory("evaluate")(Asks, attempt=attempt) for attempt in (1, 2, 3)],
        "runtime": minutes("evaluate"),
        "threads": {{stage: cpu_threads(stage) for stage in ("profile", "allocate", "evaluate")}},
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


def test_a_cluster_hands_out_gpus_that_the_login_node_lacks(seen: Callable[..., dict[str, Any]]) -> None:
    assert seen("", "--resources", "gpu=1000")["asks"] == 1
    assert seen("", "--resources", "gpu=1000", overrides="models.tiny-llama.device=cpu")["asks"] == 0


def test_budgets_that_follow_from_the_profile_take_no_gpu(
    seen: Callable[..., dict[str, Any]], repository: Path
) -> None:
    profile = yaml.safe_load((repository / "workflow/profiles/slurm/config.yaml").read_text())
    assert not any("gpu" in asked for asked in profile.get("set-resources", {}).values())  # it would go before
    promised = ("--resources", f"gpu={profile['resources']['gpu']}")
    asked = seen("", *promised, overrides="allocator=[uniform,pyramid,baklava,baklava_measured]")["asks_to_allocate"]
    assert asked == {"uniform": 0, "pyramid": 0, "baklava": 1, "baklava_measured": 1}
    plain = seen("0", overrides="allocators.baklava.search=false")["asks_to_allocate"]
    assert plain == {"uniform": 0, "baklava": 0}


FAILING = """
include: "{repository}/workflow/rules/common.smk"
rule all:
    input: "refused", "died", "full"
rule refused:
    output: "refused"
    log: "refused.log"
    shell: "echo 'baklava evaluate: error: task vt: no such file' > {{log}}; exit 2"
rule died:
    output: "died"
    log: "died.log"
    shell: "echo '50%' > {{log}}; kill -9 $$"
rule full:
    output: "full"
    log: "full.log"
    shell: "echo 'baklava evaluate: error: [Errno 28] No space left on device' > {{log}}; exit 1"
"""


def test_only_failures_that_may_pass_are_retried(
    snakemake: Callable[..., Any], repository: Path, tmp_path: Path
) -> None:
    (tmp_path / "Snakefile").write_text(FAILING.format(repository=repository))
    run = snakemake(tmp_path, "--snakefile", "Snakefile", "--cores", "1", "--retries", "2", "--keep-going")
    assert run.status != 0
    assert {rule: len(re.findall(rf"Error in rule {rule}:", run.output)) for rule in ("refused", "died", "full")} == {
        "refused": 1,
        "died": 3,
        "full": 3,
    }


@pytest.mark.parametrize("stage", ["evaluate", "records"])  # `records`: as it was called before
def test_each_attempt_asks_for_more_memory(seen: Callable[..., dict[str, Any]], stage: str) -> None:
    asked = seen("", overrides=f"resources.{stage}.mem_mb=7000 resources.{stage}.runtime=20")
    assert (asked["mem_mb"], asked["runtime"]) == ([7000, 14000, 21000], 20)


def test_jobs_of_a_stage_divide_the_cores(seen: Callable[..., dict[str, Any]]) -> None:
    """One model, two tasks."""
    asked = seen("", "--cores", "8", overrides="resources.allocate.threads=3")
    assert asked["threads"] == {"profile": 8, "allocate": 3, "evaluate": 4}
