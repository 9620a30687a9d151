"""`baklava plan`: a ratio for a memory cap, budgets for it, and one plain line where nothing fits."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from baklava.budgets import Budgets
from baklava.cli import main
from baklava.errors import UserError
from baklava.experiment.compose import compose
from baklava.experiment.paths import ExperimentPaths
from baklava.importance.profile import Profile

CAP = ["model=tiny-llama", "plan.gpu_memory=72MiB", "plan.reserve=1MiB", "plan.context=2048", "plan.batch=4"]


def planned(capsys: pytest.CaptureFixture[str], *overrides: str) -> str:
    assert main(["plan", *CAP, *overrides]) == 0
    return capsys.readouterr().out


def ratio_of(shown: str) -> float:
    found = re.search(r"fits at ratio ([\d.]+):", shown)
    assert found is not None
    return float(found[1])


def complaint(capsys: pytest.CaptureFixture[str], *overrides: str) -> str:
    assert main(["plan", *CAP, *overrides]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def write_profile(folder: Path) -> None:
    heads = np.random.default_rng(0).random((2, 6, 8)).astype(np.float32)
    profile = Profile("tiny-llama", 4, {"eviction_shift": heads}, np.ones((2, 6), np.float32))
    profile.save(ExperimentPaths(folder, "default").profile("tiny-llama"))


def test_the_parts_and_the_ratio_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    shown = planned(capsys)
    for part in ("weights", "reserve", "reading a context", "kept whole", "KV caches"):
        assert f"  {part} " in shown
    assert 0.5 < ratio_of(shown) < 0.95


def test_more_context_needs_a_higher_ratio_and_more_memory_a_lower_one(capsys: pytest.CaptureFixture[str]) -> None:
    ratio = ratio_of(planned(capsys))
    assert ratio_of(planned(capsys, "plan.batch=5")) > ratio
    assert ratio_of(planned(capsys, "plan.gpu_memory=90MiB")) < ratio
    assert "fits without compression" in planned(capsys, "plan.gpu_memory=1GiB")


def test_what_does_not_fit_is_one_line_with_its_reason(capsys: pytest.CaptureFixture[str]) -> None:
    error = complaint(capsys, "plan.gpu_memory=12MiB")
    assert "tiny-llama does not fit: of 12.00 MiB" in error
    assert "lower plan.context or plan.batch, or raise plan.gpu_memory" in error


def test_a_ratio_above_the_largest_allowed_does_not_fit(capsys: pytest.CaptureFixture[str]) -> None:
    ratio = ratio_of(planned(capsys))
    assert "at the largest ratio, 0.5" in complaint(capsys, "plan.largest_ratio=0.5")
    assert ratio_of(planned(capsys, f"plan.largest_ratio={ratio}")) == ratio


def test_budgets_are_written_from_a_profile(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_profile(tmp_path)
    shown = planned(capsys, f"results={tmp_path}", "allocator=duo", "plan.allocator=duo")
    [path] = (tmp_path / "default" / "plan").rglob("*.json")
    assert f"budgets: {path}" in shown
    budgets = Budgets.load(path)
    assert (budgets.ratio, budgets.allocator, budgets.shape) == (ratio_of(shown), "duo", (6, 4))


class TestMistakes:
    def test_without_a_profile_there_are_no_budgets(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        error = complaint(capsys, f"results={tmp_path}", "plan.allocator=uniform")
        assert "tiny-llama.safetensors: no profile to make budgets from; make it with `baklava profile`" in error

    def test_an_allocator_must_be_among_those_chosen(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert "plan.allocator: 'duo' is not among the allocators uniform, baklava" in complaint(
            capsys, "plan.allocator=duo"
        )

    @pytest.mark.parametrize(
        ("override", "expected"),
        [
            ("plan.gpu_memory=lots", "plan.gpu_memory: expected a size such as 24GiB or 800MB, got 'lots'"),
            ("plan.gpu_memory=24", "plan.gpu_memory: Input should be greater than or equal to 1048576"),
            ("plan.reserve=-1GiB", "plan.reserve: expected a size such as 24GiB"),
            ("plan.context=0", "plan.context"),
            ("plan.largest_ratio=1", "plan.largest_ratio"),
            ("plan.nonsense=1", "nonsense"),
        ],
    )
    def test_a_mistake_names_its_key(self, override: str, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert expected in complaint(capsys, override)


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [("24GiB", 24 * 2**30), ("1.5 MiB", 3 * 2**19), ("800MB", 800_000_000), ("2TB", 2 * 10**12), ("9000000B", 9000000)],
)
def test_sizes_have_binary_and_decimal_units(text: str, n_bytes: int) -> None:
    config = compose([f"plan.gpu_memory='{text}'"])
    assert config.plan.gpu_memory == n_bytes
    assert config.plan.reserve == 2**30


def test_without_a_cap_the_device_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from baklava.search.plan import plan

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"plan\.gpu_memory: there is no CUDA device here to ask"):
        plan(["model=tiny-llama"])
