from __future__ import annotations

import multiprocessing
import shutil
from contextlib import suppress
from pathlib import Path

from tracked_experiment import FIGURES, job_of, runs_in, small_records, write_finished

from baklava.experiment.paths import ExperimentPaths
from baklava.tracking.run import track

EXPERIMENTS = ("a", "b", "c", "d")


def test_eight_at_once_lose_nothing_and_double_nothing(tmp_path: Path):
    """Four experiments, each tracked by two processes, into a store that none of them finds."""
    layouts = [ExperimentPaths(tmp_path / "results", name) for name in EXPERIMENTS]
    write_finished(layouts[0], small_records())
    for layout in layouts[1:]:
        shutil.copytree(layouts[0].root, layout.root)
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["baklava.tracking.run"])
    running = [processes.Process(target=track, args=(job_of(layout),)) for layout in layouts for _ in range(2)]
    for process in running:
        process.start()
    for process in running:
        process.join()
    assert [process.exitcode for process in running] == [0] * 8
    for layout in layouts:
        runs = runs_in(layout)
        names = [run.info.run_name for run in runs]
        assert len(names) == 12
        assert len(set(names)) == 9  # three cells of the same name per model, the models, and their methods
        assert {run.info.status for run in runs} == {"FINISHED"}
        assert {run.data.tags["experiment"] for run in runs} == {layout.experiment}
        figures = layout.results / "mlartifacts" / layout.experiment
        assert len(list(figures.rglob("*.svg"))) == 2 * (len(FIGURES) // 2 + 1)


def test_killed_while_it_makes_a_new_database_it_is_run_again(tmp_path: Path):
    layout = ExperimentPaths(tmp_path / "results", "a")
    write_finished(layout, small_records())
    process = multiprocessing.get_context("spawn").Process(target=track, args=(job_of(layout),))
    process.start()
    begun = 0
    while not begun and process.is_alive():  # the first table is there, the last is not
        for path in layout.results.glob("*mlflow.db*"):
            with suppress(FileNotFoundError):
                begun += path.stat().st_size
    process.kill()
    process.join()
    assert begun
    assert not (layout.results / "mlflow.db").exists()
    track(job_of(layout))
    assert {run.info.status for run in runs_in(layout)} == {"FINISHED"}
    assert not list(layout.results.glob(".mlflow.db*"))
