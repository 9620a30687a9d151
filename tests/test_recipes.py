"""The recipes of CONTRIBUTING.md, followed to the letter on a copy of the tree."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from small_experiment import write_model

# `path`: and the block that goes there: a new file, or lines for one that exists.
RECIPE = re.compile(r"`((?:baklava|conf|workflow)/[\w./-]+)`[^`\n]*:\n\n```\w*\n(.*?)^```", re.MULTILINE | re.DOTALL)
EXPERIMENT = [
    "experiment=smoke",
    "name=recipes",
    "task=[passkey]",
    "eviction=[value_norm]",
    "allocator=[uniform,wedge]",
    "profile.estimators=[output_norm]",
    "models.tiny-llama.dtype=float32",
    "ratios=[0.5]",
    "calibration.length=320",
    "calibration.n_profile=1",
    "calibration.n_search=1",
    "evaluate.n_samples=2",
    "evaluate.length=320",
    "summary.n_bootstrap=100",
    "tracking=none",
]


def add_lines(file: Path, lines: str) -> None:
    """Put lines into a file that exists: into its table where they are indented, else behind its last import.

    Rules go to the end.
    """
    text = file.read_text().splitlines()
    if file.suffix == ".smk":
        file.write_text("\n".join([*text, "", "", *lines.splitlines()]) + "\n")
        return
    opening = [i for i, line in enumerate(text) if line.endswith("= {")]
    imports = [i for i, line in enumerate(text) if line.startswith(("from ", "import "))]
    last = opening[0] if lines.startswith(" ") else imports[-1]
    file.write_text("\n".join([*text[: last + 1], *lines.splitlines(), *text[last + 1 :]]) + "\n")


@pytest.fixture(scope="module")
def copy(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository with every recipe followed."""
    folder = tmp_path_factory.mktemp("copy")
    for name in ("baklava", "conf", "workflow"):
        shutil.copytree(repository / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(repository / "Snakefile", folder)
    recipes = RECIPE.findall((repository / "CONTRIBUTING.md").read_text())
    assert len(recipes) > 8
    for path, block in recipes:
        file = folder / path
        if file.exists():
            add_lines(file, block)
        else:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block)
    return folder


def run(copy: Path, folder: Path, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(copy), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.workflow
def test_what_was_added_takes_part_in_an_experiment(copy: Path, tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    overrides = [*EXPERIMENT, f"models.tiny-llama.path={model}"]
    (tmp_path / "conf").symlink_to(copy / "conf")
    for stage in ("calibrate", "profile", "allocate", "evaluate", "summarize"):
        run(copy, tmp_path, "baklava", stage, *overrides)
    summary = pd.read_csv(tmp_path / "results" / "recipes" / "summary.csv")
    assert set(zip(summary["task"], summary["allocator"], summary["eviction"], strict=True)) == {
        ("passkey", "full", "none"),
        ("passkey", "uniform", "value_norm"),
        ("passkey", "wedge", "value_norm"),
    }


@pytest.mark.workflow
def test_a_stage_that_was_added_is_a_command_and_a_rule(copy: Path, tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    (tmp_path / "conf").symlink_to(copy / "conf")
    overrides = [*EXPERIMENT, f"models.tiny-llama.path={model}"]
    for stage in ("calibrate", "profile", "spread"):
        run(copy, tmp_path, "baklava", stage, *overrides)
    spread = json.loads((tmp_path / "results" / "recipes" / "spread" / "tiny-llama.json").read_text())
    assert spread["output_norm"] >= 1.0
    assert "say how uneven importance is" in run(copy, tmp_path, "baklava", "--help")
    config = ["--config", "experiment=smoke", f"overrides=name=planned models.tiny-llama.path={model}"]
    planned = run(copy, tmp_path, "snakemake", "--cores", "1", "-n", "--snakefile", str(copy / "Snakefile"), *config)
    assert re.search(r"^spread +1$", planned, flags=re.MULTILINE)


def test_a_model_is_one_file(copy: Path, tmp_path: Path) -> None:
    (tmp_path / "conf").symlink_to(copy / "conf")
    code = "from baklava.experiment.compose import compose; print(compose(['model=my-model']).models['my-model'].path)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(copy)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "meta-llama/Meta-Llama-3-8B-Instruct"
