"""A disk that fills up while something is written: one line that says so, and what was there before stays whole."""

from __future__ import annotations

import errno
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from matplotlib.figure import Figure

from baklava.analysis.summary import _write_csv
from baklava.budgets import Budgets
from baklava.calibration.prompts import Calibration, Prompt
from baklava.cli import main
from baklava.experiment.compose import compose
from baklava.experiment.jobs import ReportJob
from baklava.experiment.paths import ExperimentPaths
from baklava.experiment.stages import STAGES
from baklava.importance.profile import Profile
from baklava.report.plots.style import save
from baklava.system.append_log import AppendLog
from baklava.system.files import write_json
from baklava.system.parquet import write_parquet, write_parquet_rows

SIZE = 256 * 1024
MUCH = "".join(map(chr, np.random.default_rng(0).integers(33, 127, 4 * SIZE)))  # no compression makes it fit


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file system of 256 KiB."""
    folder = tmp_path_factory.mktemp("disk")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if mounted.returncode != 0:
        pytest.skip(f"cannot mount a small file system here ({mounted.stderr.strip()}); it takes root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def empty(disk: Path) -> Path:
    for path in disk.iterdir():
        path.unlink()
    return disk


def prompt(text: str) -> Prompt:
    return Prompt("t", 0, text, "q", "a")


def profile(n: int) -> Profile:
    return Profile("m", 1, {"e": np.ones((n, 1, 1), np.float32)}, np.ones((n, 1), np.float32))


def figure(n: int) -> Figure:
    made = Figure()
    made.subplots().plot(np.random.default_rng(0).random(n))
    return made


TEXTS = pa.schema([("text", pa.string())])
# How each kind of file is written: little that fits, or much that does not.
WRITERS: dict[str, Callable[[Path, bool], Any]] = {
    "a.json": lambda path, much: write_json(path, {"text": MUCH if much else "x"}, schema=1),
    "calibration.json": lambda path, much: Calibration((prompt(MUCH if much else "x"),), ()).save(path),
    "budgets.json": lambda path, much: Budgets.from_shares([[0.5] * (SIZE if much else 2)]).save(path),
    "p.safetensors": lambda path, much: profile(2**18 if much else 1).save(path),
    "t.parquet": lambda path, much: write_parquet(path, pa.table({"text": [MUCH if much else "x"]}), schema=1),
    "rows.parquet": lambda path, much: write_parquet_rows(path, [{"text": MUCH if much else "x"}], TEXTS, schema=1),
    "s.csv": lambda path, much: _write_csv(path, pd.DataFrame({"text": [MUCH if much else "x"]})),
    "f.svg": lambda path, much: save(figure(100_000 if much else 2), path.parent, path.stem),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_that_does_not_fit_leaves_the_old_one_and_no_trace(empty: Path, name: str) -> None:
    path = empty / name
    WRITERS[name](path, False)
    before = {file: file.read_bytes() for file in empty.iterdir()}
    with pytest.raises(OSError, match="make room and run again") as caught:
        WRITERS[name](path, True)
    assert caught.value.errno == errno.ENOSPC
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert {file: file.read_bytes() for file in empty.iterdir()} == before


def test_a_store_keeps_what_it_has_and_takes_more_once_there_is_room(
    empty: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    filler = empty / "filler"
    store = AppendLog(empty / "s.lines")
    store.add({"a": 1})
    filler.write_bytes(bytes(SIZE // 2))
    before = store.path.read_bytes()
    with pytest.raises(OSError, match=r"finished answers are kept.*s\.lines"):
        store.add({"b": MUCH})
    assert store.path.read_bytes() == before
    filler.unlink()
    store.add({"c": 3})
    store.close()
    again = AppendLog(empty / "s.lines")
    assert (again["a"], again["c"], len(again)) == (1, 3, 2)
    assert capsys.readouterr().err == ""


def test_the_command_line_says_it_in_one_line(
    empty: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stage = ModuleType("stage_that_writes_much")
    stage.run = lambda job: write_json(empty / "out.json", {"text": MUCH}, schema=1)  # type: ignore[attr-defined]
    monkeypatch.setitem(__import__("sys").modules, "stage_that_writes_much", stage)
    monkeypatch.setitem(STAGES, "report", replace(STAGES["report"], run="stage_that_writes_much:run"))
    job = ReportJob.of(compose([]), ExperimentPaths(empty, "x"))
    assert main(["report", "--job", job.model_dump_json()]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith("baklava report: error: [Errno 28] No space left on device; ")
    assert str(empty / "out.json") in said
    assert list(empty.iterdir()) == []
