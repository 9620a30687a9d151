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
from baklava.experiment.jobs import AllocateJob
from baklava.experiment.paths import ExperimentPaths
from baklava.importance.profile import Profile
from baklava.search.trace import Cost

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
    for part in ("weights", "plan.reserve", "reading a context", "kept whole", "KV caches"):
        assert f"  {part} " in shown
    assert 0.5 < ratio_of(shown) < 0.95


def test_fewer_bits_keep_more_entries_in_the_same_bytes(capsys: pytest.CaptureFixture[str]) -> None:
    """Of float32's bytes, 8 bits take 9/32 with their scales, 4 bits 5/32 and 2 bits 3/32."""
    shown = planned(capsys, "plan.gpu_memory=56MiB")
    kept = 1.0 - ratio_of(shown)
    shares = {int(bits): float(share) / 100 for share, bits in re.findall(r"([\d.]+)% of them at (\d) bits", shown)}
    for bits, price in ((8, 9 / 32), (4, 5 / 32), (2, 3 / 32)):
        assert shares[bits] == pytest.approx(kept / price, abs=64 / 2048)
    assert "  or in the same bytes: all at 8 bits, all at 4 bits, all at 2 bits" in planned(
        capsys, "plan.gpu_memory=90MiB"
    )
    assert "bits" not in planned(capsys, "plan.gpu_memory=1GiB")


def test_more_context_needs_a_higher_ratio_and_more_memory_a_lower_one(capsys: pytest.CaptureFixture[str]) -> None:
    ratio = ratio_of(planned(capsys))
    assert ratio_of(planned(capsys, "plan.batch=5")) > ratio
    assert ratio_of(planned(capsys, "plan.gpu_memory=90MiB")) < ratio
    assert "fits without compression" in planned(capsys, "plan.gpu_memory=1GiB")
    waiting = planned(capsys, "eviction=layer_ada_snapkv")
    assert ratio_of(waiting) > ratio
    assert "; layer_ada_snapkv compresses no layer before all are read" in waiting


def test_what_does_not_fit_is_one_line_with_its_reason(capsys: pytest.CaptureFixture[str]) -> None:
    error = complaint(capsys, "plan.gpu_memory=12MiB")
    assert "tiny-llama does not fit: 4 x 2048 tokens at plan.largest_ratio=0.95 take " in error
    assert " more than 12.00 MiB (weights " in error
    assert "plan.reserve 1.00 MiB" in error
    assert "lower plan.context, plan.batch or plan.reserve, or raise plan.gpu_memory" in error


@pytest.mark.parametrize("batch", [1, 4])
def test_what_is_missing_is_just_enough(capsys: pytest.CaptureFixture[str], batch: int) -> None:
    """The message takes the cheaper way of reading: with what it asks for the plan fits, with less it does not."""
    override = f"plan.batch={batch}"
    error = complaint(capsys, "plan.gpu_memory=12MiB", override)
    missing = float(re.search(r"take ([\d.]+) MiB more", error)[1])  # type: ignore[index]
    assert ratio_of(planned(capsys, f"plan.gpu_memory={12 + missing + 0.1}MiB", override)) <= 0.95
    complaint(capsys, f"plan.gpu_memory={12 + missing - 0.1}MiB", override)


class TestContext:
    def test_it_cannot_be_longer_than_the_models_positions(self, capsys: pytest.CaptureFixture[str]) -> None:
        """The tiny models have 4,096 positions; 256 of them are for new tokens."""
        error = complaint(capsys, "plan.context=4k")
        assert "plan.context: 4096 tokens and 256 new ones (plan.new_tokens) are more than the 4096 positions" in error
        assert "set plan.context to 3840 or less" in error
        assert "lower plan.new_tokens" in complaint(capsys, "plan.new_tokens=4096")

    def test_it_is_as_long_as_the_model_can_take_by_default(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert "tiny-llama: 4 x 3840 tokens in 1.00 GiB" in planned(capsys, "plan.context=null", "plan.gpu_memory=1GiB")

    def test_thousands_can_be_written_short(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert "tiny-llama: 4 x 3072 tokens" in planned(capsys, "plan.context=3k", "plan.gpu_memory=1GiB")
        assert "plan.context: expected a number of tokens such as 32768 or 32k, got 'long'" in complaint(
            capsys, "plan.context=long"
        )


def test_a_ratio_above_the_largest_allowed_does_not_fit(capsys: pytest.CaptureFixture[str]) -> None:
    ratio = ratio_of(planned(capsys))
    assert "at plan.largest_ratio=0.5 take" in complaint(capsys, "plan.largest_ratio=0.5")
    assert ratio_of(planned(capsys, f"plan.largest_ratio={ratio}")) == ratio


def test_budgets_are_written_from_a_profile(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_profile(tmp_path)
    shown = planned(capsys, f"results={tmp_path}", "allocator=duo", "plan.allocator=duo")
    [path] = (tmp_path / "default" / "plan").rglob("*.json")
    assert f"budgets: {path}" in shown
    budgets = Budgets.load(path)
    assert (budgets.ratio, budgets.allocator, budgets.shape) == (ratio_of(shown), "duo", (6, 4))


class TestBudgetsOfTheExperiment:
    OWN = ("allocator=[uniform,baklava]", "plan.allocator=baklava")

    def save(self, folder: Path, *ratios: float) -> ExperimentPaths:
        paths = ExperimentPaths(folder, "default")
        for ratio in ratios:
            budgets = Budgets.uniform(n_layers=6, n_kv_heads=4, ratio=ratio, model="tiny-llama")
            budgets.save(paths.budgets("tiny-llama", "baklava", "streaming_llm", ratio))
        return paths

    def test_those_at_the_next_ratio_are_used(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """Nothing is searched: there is not even a profile."""
        paths = self.save(tmp_path, 0.1, 0.9, 0.93)
        shown = planned(capsys, f"results={tmp_path}", *self.OWN)
        assert 0.1 < ratio_of(shown) < 0.9
        path = paths.budgets("tiny-llama", "baklava", "streaming_llm", 0.9)
        assert f"budgets: {path} (at ratio 0.9, the next at which" in shown
        assert f"add {ratio_of(shown):g} to `ratios` for its own)" in shown

    def test_those_beyond_the_largest_ratio_are_not(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.save(tmp_path, 0.1, 0.97)
        assert "no profile to make budgets from" in complaint(capsys, f"results={tmp_path}", *self.OWN)

    def test_a_search_says_what_it_does_and_how_long_the_experiments_took(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        searched: list[AllocateJob] = []
        monkeypatch.setattr("baklava.search.run.allocate", searched.append)
        paths = self.save(tmp_path, 0.1, 0.2)
        write_profile(tmp_path)
        shown = planned(capsys, f"results={tmp_path}", *self.OWN)
        assert f"or above: searching some, on the prompts of {paths.prompts('tiny-llama')}: the time of" in shown
        cost = paths.search_cost("tiny-llama", "baklava", "streaming_llm")
        Cost(seconds=600, prefill_seconds=1, n_prompts=8, n_trials=64, n_replays=99, n_refined=2).save(cost)
        before = cost.read_bytes()
        assert "about 10 min, by the search of the experiment's other ratios" in planned(
            capsys, f"results={tmp_path}", *self.OWN
        )
        assert cost.read_bytes() == before
        assert {job.cost.parent for job in searched} == {job.trace.parent for job in searched}


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
            ("plan.gpu_memory=lots", "plan.gpu_memory: expected a size such as 24GiB or 800MiB, got 'lots'"),
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
