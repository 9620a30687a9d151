"""Losses that were measured are known again, and only where all that determines them is the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from threading import Thread

import numpy as np
import pytest

from baklava.budgets import Budgets
from baklava.calibration.prompts import Prompt
from baklava.experiment.components import EvictionConfig, ModelConfig
from baklava.inference.stored_losses import LossStore
from baklava.system.append_log import HEADER

MODEL = ModelConfig(name="m", path="some/model", dtype="float32")
POLICY = EvictionConfig(name="streaming_llm", family="streaming_llm")
PROMPT = Prompt("none", 0, "context", "question", "answer")
BUDGETS = [Budgets.uniform(n_layers=1, n_kv_heads=2, ratio=ratio) for ratio in (0.0, 0.5, 0.9)]


class FakeReplay:
    def __init__(self) -> None:
        self.asked = 0

    def losses(self, prompt: Prompt, budgets: list[Budgets]) -> np.ndarray:
        self.asked += 1
        return np.array([np.nan if one.ratio == 0.9 else one.ratio / 3 for one in budgets])


@pytest.fixture
def replay() -> FakeReplay:
    return FakeReplay()


def measured(
    path: Path, replay: FakeReplay, prompt=PROMPT, budgets=BUDGETS, model=MODEL, policy=POLICY
) -> tuple[list[float], float]:
    """As another process would: losses and seconds."""
    with LossStore.at(path, model, policy, lambda: replay) as kept:  # type: ignore[arg-type, return-value]
        return kept.losses(prompt, budgets).tolist(), kept.seconds


def test_they_are_measured_once_and_are_the_same_to_the_last_bit(tmp_path: Path, replay: FakeReplay) -> None:
    first = measured(tmp_path / "a.losses", replay)
    assert first[0] == [0.0, 0.5 / 3, np.inf]
    assert measured(tmp_path / "a.losses", replay) == first
    assert replay.asked == 1


@pytest.mark.parametrize(
    "changed",
    [
        {"prompt": replace(PROMPT, answer="another")},
        {"budgets": BUDGETS[:2]},
        {"budgets": BUDGETS[::-1]},
        {"model": MODEL.model_copy(update={"dtype": "bfloat16"})},
        {"policy": EvictionConfig(name="streaming_llm", family="streaming_llm", n_sink=2)},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_what_determines_them_is_part_of_what_they_are_known_by(
    tmp_path: Path, replay: FakeReplay, changed: dict
) -> None:
    measured(tmp_path / "a.losses", replay)
    measured(tmp_path / "a.losses", replay, **changed)
    assert replay.asked == 2


def test_a_line_that_was_cut_short_is_measured_again(tmp_path: Path, replay: FakeReplay, capfd) -> None:
    first, _ = measured(tmp_path / "a.losses", replay)
    content = (tmp_path / "a.losses").read_bytes()
    (tmp_path / "a.losses").write_bytes(content[:-5])
    assert measured(tmp_path / "a.losses", replay)[0] == first
    assert replay.asked == 2


def test_without_budgets_nothing_is_measured_or_kept(tmp_path: Path, replay: FakeReplay) -> None:
    assert measured(tmp_path / "a.losses", replay, budgets=[]) == ([], 0.0)
    assert replay.asked == 0
    assert (tmp_path / "a.losses").read_bytes() == HEADER


def test_a_second_process_waits_for_the_first_to_end(
    tmp_path: Path, replay: FakeReplay, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.losses"
    second = Thread(target=measured, args=[path, replay])
    with LossStore.at(path, MODEL, POLICY, lambda: replay) as store:  # type: ignore[arg-type, return-value]
        second.start()
        second.join(0.1)
        assert second.is_alive()
        store.losses(PROMPT, BUDGETS)
    second.join()
    assert replay.asked == 1
    assert "a.losses: waiting while another process is at work on it" in capfd.readouterr().err
