"""`baklava export --check`: the score that rounding costs, by the evaluation that `baklava evaluate` runs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from baklava.budgets import Budgets
from baklava.cli import main

SETTINGS = ["task=continuation_standin", "evaluate.n_samples=2", "evaluate.length=320", "evaluate.compress_above=0"]


def check(budgets: Budgets, folder: Path, *command: str, settings: tuple[str, ...] = ()) -> int:
    budgets.save(folder / "budgets.json")
    where = ["--budgets", str(folder / "budgets.json"), "--output", str(folder / "out.json")]
    return main(["export", *where, *command, "--check", *SETTINGS, *settings])


def scores(shown: str) -> dict[str, str]:
    """Scores with their intervals, by what they are of."""
    return {label: score for score, label in re.findall(r"score (\S+ \[.*?\]) (.*?), ", shown)}


def test_what_rounding_costs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    budgets = Budgets.from_shares(np.random.default_rng(0).uniform(0.05, 0.4, (6, 4)))
    assert check(budgets, tmp_path, "--to", "trtllm-windows", "--context", "320") == 0
    shown = capsys.readouterr().out
    assert "lost: shares differ" in shown and "tiny-llama, continuation_standin, streaming_llm, 2 samples:" in shown
    first = scores(shown)
    means = [float(first[label].split()[0]) for label in ("these budgets", "rounded")]
    rounding = re.search(r"rounding: (\S+) \[(\S+), (\S+)\]", shown)
    assert rounding is not None
    difference, low, high = map(float, rounding.groups())
    assert difference == pytest.approx(means[1] - means[0], abs=0.00011) and low <= difference <= high
    assert first["these budgets"] != first["rounded"] != first["full cache"]
    # What the windows keep scores the same when it is given as budgets, which our own format expresses exactly.
    windows = np.array(json.loads((tmp_path / "out.json").read_text())["max_attention_window"]) / 320
    assert check(Budgets.from_shares(np.repeat(windows[:, None], 4, 1)), tmp_path, "--to", "json") == 0
    shown = capsys.readouterr().out
    second = scores(shown)
    assert second["these budgets"].split()[0] == second["rounded"].split()[0] == first["rounded"].split()[0]
    assert "rounding: +0.0000 [+0.0000, +0.0000]" in shown


def test_budgets_of_another_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    budgets = Budgets.uniform(n_layers=6, n_kv_heads=4, ratio=0.5)
    for settings, message in (
        (("model=tiny-qwen2",), "is [layers, KV heads] [6, 4], model tiny-qwen2 has [8, 2]; set model=NAME"),
        (("model=[tiny-llama,tiny-qwen2]",), "budgets are checked with one model; set model=NAME"),
    ):
        assert check(budgets, tmp_path, "--to", "json", settings=settings) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out.json").exists()
