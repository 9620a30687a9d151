"""The data of loss curves: their mean, and files that do not fit are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from baklava.errors import UserError
from baklava.importance.loss_curves import LossCurves
from baklava.importance.profile import Profile

LEVELS = (0.0, 0.1, 0.25, 0.5)
SHAPE = (2, 2)
POLICY = {"name": "streaming_llm", "family": "streaming_llm", "n_sink": 3}


def curves(**changes: object) -> LossCurves:
    rises = np.random.default_rng(0).random((4, len(LEVELS), *SHAPE)).astype(np.float32)
    meta = {"policy": POLICY, "calibration": "c"}
    return replace(LossCurves("m", "streaming_llm", LEVELS, rises, np.ones(4, np.float32), meta), **changes)


def profile(model: str = "m", n_layers: int = 2, n_kv_heads: int = 2) -> Profile:
    return Profile(model, n_kv_heads, {"e": np.ones((1, n_layers, 4), np.float32)}, np.ones((1, n_layers), np.float32))


def test_importance_is_the_mean_over_prompts_and_levels() -> None:
    rises = np.zeros((4, 2, 1, 1), np.float32)
    rises[:, 0, 0, 0] = [1.0, 2.0, 3.0, 6.0]
    rises[:, 1, 0, 0] = 1.0
    measured = curves(rises=rises, levels=(0.0, 0.5))
    assert measured.mean()[:, 0, 0].tolist() == [3.0, 1.0]
    assert measured.importance().tolist() == [[2.0]]


class TestFile:
    def test_saved_curves_come_back(self, tmp_path: Path) -> None:
        before = curves()
        before.save(tmp_path / "c.safetensors")
        after = LossCurves.load(tmp_path / "c.safetensors", profile(), POLICY)
        assert (after.rises == before.rises).all()
        assert (after.full == before.full).all()
        assert (after.model, after.eviction, after.levels, after.meta) == ("m", "streaming_llm", LEVELS, before.meta)

    def test_a_missing_file_names_the_command(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"c\.safetensors: no such file of curves; make it with `baklava curves`"):
            LossCurves.load(tmp_path / "c.safetensors", profile(), POLICY)

    @pytest.mark.parametrize("keep", [0, 5, 60, -1])
    def test_a_truncated_file_is_refused_by_name(self, tmp_path: Path, keep: int) -> None:
        path = tmp_path / "c.safetensors"
        curves().save(path)
        path.write_bytes(path.read_bytes()[:keep])
        with pytest.raises(UserError, match=r"c\.safetensors: not a readable file of curves"):
            LossCurves.load(path, profile(), POLICY)

    def test_a_profile_is_no_file_of_curves(self, tmp_path: Path) -> None:
        profile().save(tmp_path / "p.safetensors")
        with pytest.raises(UserError, match=r"p\.safetensors: not a readable file of curves"):
            LossCurves.load(tmp_path / "p.safetensors", profile(), POLICY)

    @pytest.mark.parametrize("other", [profile("another"), profile(n_layers=3), profile(n_kv_heads=4)], ids=str)
    def test_curves_of_another_model_are_refused(self, tmp_path: Path, other: Profile) -> None:
        curves().save(tmp_path / "c.safetensors")
        with pytest.raises(UserError, match=r"c\.safetensors: curves of m, .* do not go with the profile of"):
            LossCurves.load(tmp_path / "c.safetensors", other, POLICY)

    def test_curves_of_another_policy_are_refused(self, tmp_path: Path) -> None:
        curves().save(tmp_path / "c.safetensors")
        other = {**POLICY, "n_sink": 4}
        with pytest.raises(UserError, match=r"c\.safetensors: curves of the eviction policy streaming_llm"):
            LossCurves.load(tmp_path / "c.safetensors", profile(), other)
