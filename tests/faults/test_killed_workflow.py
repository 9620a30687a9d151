"""The workflow killed at random moments and run again ends with what an undisturbed run gives.

Twenty kills take minutes: `make test-faults`.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest
from mlflow import MlflowClient
from small_experiment import NAME, overrides, start_snakemake, write_model

N_KILLS = int(os.environ.get("BAKLAVA_KILLS", "20"))
SEED = int(os.environ.get("BAKLAVA_KILLS_SEED", "0"))
LONGEST = 3600  # seconds for one run of the workflow

# Equal from run to run, byte for byte. Not here: timings, logs, the store (in the order of work), and MLflow's own.
SAME = ("summary.csv", "summary.parquet", "headline.json", "calibration", "profile", "budgets", "search", "records")


# Files that say when or how long.
WITH_TIMES = (".usage.csv", ".cost.json", ".losses")


def digests(folder: Path) -> dict[str, str]:
    root = folder / "results" / NAME
    files = [path for name in SAME for path in ([root / name] if "." in name else sorted((root / name).rglob("*")))]
    kept = [path for path in files if path.is_file() and not path.name.endswith(WITH_TIMES)]
    return {str(path.relative_to(root)): _digest(path) for path in kept}


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def run_keys(folder: Path) -> list[str]:
    """What tells the active MLflow runs apart, of all that are finished."""
    client = MlflowClient(f"sqlite:///{folder / 'results' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name(f"baklava/{NAME}")
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    assert {run.info.status for run in runs} == {"FINISHED"}
    return sorted(run.data.tags["baklava.key"] for run in runs)


def leftovers(folder: Path) -> list[Path]:
    return [path for path in (folder / "results").rglob("*") if path.name.endswith(".unfinished")]


class Workflow:
    """The small experiment in a folder, run again and again until it is done."""

    def __init__(self, repository: Path, folder: Path, model: Path):
        folder.mkdir()
        self.folder = folder
        self._start = lambda *options: start_snakemake(repository, folder, overrides(model), *options)

    def log(self) -> str:
        return (self.folder / "snakemake.log").read_text()

    def unlock(self) -> None:
        """What Snakemake's message says to do after the main process was killed."""
        if any((self.folder / ".snakemake" / "locks").glob("*")):
            assert self._start("--unlock").wait(LONGEST) == 0, self.log()

    def jobs_begun(self) -> int:
        return sum(path.suffix == ".log" for path in (self.folder / "results" / NAME / "logs").rglob("*"))

    def killed_at_random(self, rng: random.Random, n_jobs: int, job_takes: float) -> str | None:
        """Start, and kill at a random moment the main process, one job or all at once; None where it was done before.

        The moment is some time after some job begins, so that it does not depend on how fast the machine is just now.
        """
        self.unlock()
        goal, pause = rng.randint(min(self.jobs_begun() + 1, n_jobs), n_jobs), rng.uniform(0, job_takes)
        main = self._start()
        while main.poll() is None and self.jobs_begun() < goal:
            with suppress(subprocess.TimeoutExpired):
                main.wait(0.1)
        with suppress(subprocess.TimeoutExpired):
            main.wait(pause)
        if main.poll() is not None:
            assert main.returncode == 0, self.log()
            return None
        jobs = [pid for pid in descendants(main.pid) if b"baklava" in command_of(pid)]
        target = rng.choice(["main", "job", "all"]) if jobs else rng.choice(["main", "all"])
        if target == "all":
            os.killpg(main.pid, signal.SIGKILL)
        else:
            os.kill(main.pid if target == "main" else rng.choice(jobs), signal.SIGKILL)
        main.wait(LONGEST)
        return target

    def finish(self) -> None:
        self.unlock()
        assert self._start().wait(LONGEST) == 0, self.log()


def descendants(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, _read(task).split()):
            found += [child, *descendants(child)]
    return found


def command_of(pid: int) -> bytes:
    return _read(Path(f"/proc/{pid}/cmdline"))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # it ended meanwhile
        return b""


@pytest.mark.faults
def test_killed_at_random_moments_and_run_again_it_ends_as_if_nothing_had_happened(
    repository: Path, tmp_path: Path
) -> None:
    model = write_model(tmp_path / "model")
    started = time.monotonic()
    undisturbed = Workflow(repository, tmp_path / "undisturbed", model)
    undisturbed.finish()
    takes, n_jobs = time.monotonic() - started, undisturbed.jobs_begun()
    expected, keys = digests(undisturbed.folder), run_keys(undisturbed.folder)
    assert "summary.csv" in expected and len(set(keys)) == len(keys) >= 1 + 5  # the model, its cells

    rng = random.Random(SEED)
    kills: list[str] = []
    attempt = 0
    while len(kills) < N_KILLS:
        disturbed = Workflow(repository, tmp_path / f"disturbed-{attempt}", model)
        for _ in range(min(4, N_KILLS - len(kills))):
            target = disturbed.killed_at_random(rng, n_jobs, takes / n_jobs)
            if target is None:
                break
            kills.append(target)
            print(f"killed: {target}, with {disturbed.jobs_begun()} of {n_jobs} jobs begun", flush=True)
        disturbed.finish()
        disturbed.finish()  # a job that outlived the main process may have written once more; nothing differs
        assert digests(disturbed.folder) == expected, kills
        assert run_keys(disturbed.folder) == keys, kills
        assert leftovers(disturbed.folder) == [], kills
        attempt += 1
    print(f"{N_KILLS} kills ({', '.join(kills)}) in {attempt} experiments; an undisturbed run took {takes:.0f} s")


@pytest.mark.faults
def test_a_lock_left_behind_is_named_with_what_to_do(repository: Path, tmp_path: Path) -> None:
    workflow = Workflow(repository, tmp_path / "locked", write_model(tmp_path / "model"))
    main = workflow._start()
    locks = workflow.folder / ".snakemake" / "locks"
    while main.poll() is None and not any(locks.glob("*")):
        with suppress(subprocess.TimeoutExpired):
            main.wait(0.1)
    os.killpg(main.pid, signal.SIGKILL)
    main.wait(LONGEST)
    assert any(locks.glob("*"))
    assert workflow._start().wait(LONGEST) != 0
    assert "Directory cannot be locked" in workflow.log()
    assert "--unlock" in workflow.log()
    workflow.finish()
