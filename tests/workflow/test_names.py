"""Names that look like numbers and paths with odd letters, from Snakemake's command line to the files of a job."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_experiment import overrides, write_model

from baklava.experiment.overrides import joined, quoted
from baklava.experiment.snakemake_config import packed

Snakemake = Callable[..., Any]
ODD = "it's #1, x=y {z} $HOME ü"


def test_a_job_finds_its_model_and_its_results(snakemake: Snakemake, tmp_path: Path) -> None:
    model, results = write_model(tmp_path / ODD), tmp_path / ODD.replace("{z}", "z") / "results"
    settings = ["name=2024_11_25", f"models.tiny-llama.path={quoted(str(model))}", f"results={quoted(str(results))}"]
    some = [one for one in overrides(model) if one.partition("=")[0] not in ("name", "models.tiny-llama.path")]
    run = snakemake(tmp_path, "--cores", "1", "--until", "calibrate", overrides=joined([*some[1:], *settings]))
    assert run.status == 0, run.output
    assert "mean score over" not in run.output  # the table comes behind a whole run only
    made = results / "2024_11_25"
    assert (made / "calibration" / "tiny-llama.json").is_file()
    written = json.loads((made / "experiment.json").read_text())
    assert written["experiment"] == "smoke"
    assert written["settings"]["models"]["tiny-llama"]["path"] == str(model)
    [passed] = packed(["overrides='"], ["experiment=smoke", *some[1:], *settings])  # to jobs on a cluster
    again = snakemake(tmp_path, "-n", "--until", "calibrate", overrides=passed.removeprefix("overrides="))
    assert (again.status, again.planned) == (0, {})
    failing = joined(
        [
            *some[1:],
            "name=failing",
            f"models.tiny-llama.path={quoted(str(model))}",
            "calibration.seed=1",
            "calibration.length=64",
        ]
    )
    failed = snakemake(tmp_path, "--cores", "1", "--until", "calibrate", overrides=failing)
    assert failed.status == 1
    assert failed.output.count("length 64 is too short") == 1
    assert "baklava calibrate: error: calibration.length: task " in failed.output
    assert '{"' not in failed.output and max(map(len, failed.output.splitlines())) < 500


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"overrides": "results='/tmp/{x}/results'"}, "results: /tmp/{x}/results holds braces"),
        ({"overrides": f"results={'x' * 300}"}, "File name too long"),
        ({"experiment": "2024_11_25"}, "experiment/2024_11_25"),
    ],
)
def test_what_cannot_be_is_one_line(snakemake: Snakemake, tmp_path: Path, config: dict[str, str], said: str) -> None:
    run = snakemake(tmp_path, "-n", **config)
    lines = [line for line in run.output.splitlines() if not line.startswith("Using ")]
    assert run.status != 0
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert said in lines[0]
