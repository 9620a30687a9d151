"""The published allocations on examples worked out by hand from their papers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fake_profiles import FakeProfile, flat_profile

from baklava.allocation import Duo, HeadKV, LuCurve, Pyramid, Random, Squeeze
from baklava.allocation.squeeze import smallest_group
from baklava.errors import UserError


def layered(importance: list[float]) -> FakeProfile:
    """One KV head per layer, with this layer importance."""
    return FakeProfile(np.ones((len(importance), 1)), np.array([importance]))


class TestPyramid:
    def test_the_last_layer_keeps_a_twentieth_of_the_mean(self) -> None:
        shares = Pyramid(name="p").shares(layered([0.0] * 5), 0.9)
        assert shares[:, 0] == pytest.approx([0.195, 0.1475, 0.1, 0.0525, 0.005])

    def test_a_first_layer_that_is_whole_leaves_more_to_the_others(self) -> None:
        shares = Pyramid(name="p").shares(layered([0.0] * 3), 0.3)
        assert shares[:, 0] == pytest.approx([1.0, 0.7, 0.4])

    def test_a_single_layer_keeps_the_mean(self) -> None:
        assert Pyramid(name="p").shares(flat_profile([1.0, 2.0]), 0.6) == pytest.approx(np.full((1, 2), 0.4))


class TestSqueeze:
    def test_the_group_that_changes_least_keeps_p_of_the_mean(self) -> None:
        """Importance is 1 - cosine: the two layers of 0.1 have the largest cosine."""
        shares = Squeeze(name="s", p=0.3).shares(layered([0.9, 0.1, 0.5, 0.12, 0.52]), 0.8)
        others = 0.2 * (5 - 2 * 0.3) / 3
        assert shares[:, 0] == pytest.approx([others, 0.06, others, 0.06, others])

    def test_what_whole_layers_cannot_take_goes_back_to_the_group(self) -> None:
        shares = Squeeze(name="s", p=0.3).shares(layered([0.9, 0.1, 0.5, 0.12, 0.52]), 0.2)
        assert shares[:, 0] == pytest.approx([1.0, 0.5, 1.0, 0.5, 1.0])

    def test_layers_that_are_all_alike_are_uniform(self) -> None:
        assert Squeeze(name="s").shares(layered([0.4] * 4), 0.7)[:, 0] == pytest.approx([0.3] * 4)

    def test_layer_importance_is_averaged_over_prompts(self) -> None:
        profile = FakeProfile(np.ones((3, 2)), np.array([[0.0, 1.0, 0.4], [1.0, 0.0, 0.8]]))  # means 0.5, 0.5, 0.6
        shares = Squeeze(name="s").shares(profile, 0.5)
        assert shares == pytest.approx(np.array([[0.15] * 2, [0.15] * 2, [1.0] * 2]) + np.array([[0.1], [0.1], [0.0]]))

    @pytest.mark.parametrize("seed", range(5))
    def test_groups_are_the_best_of_all(self, seed: int) -> None:
        values = np.sort(np.random.default_rng(seed).random(9).round(1))

        def spread(groups: list[np.ndarray]) -> float:
            return sum(((group - group.mean()) ** 2).sum() for group in groups)

        cuts = [(i, j) for i in range(1, 8) for j in range(i + 1, 9) if values[i - 1] < values[i] < values[j]]
        cuts = [(i, j) for i, j in cuts if values[j - 1] < values[j]]
        best = min(spread(np.split(values, cut)) for cut in cuts)
        end = np.searchsorted(values, smallest_group(values, n_groups=3), side="right")
        assert min(spread(np.split(values, cut)) for cut in cuts if cut[0] == end) == pytest.approx(best, abs=1e-12)


class TestDuo:
    def test_heads_are_whole_in_order_and_one_takes_the_rest(self) -> None:
        """0.45 * 5 = 2.25 = 5 * 0.1 + 0.9 * 1.944...: one is whole, one nearly, three stream."""
        shares = Duo(name="d", streaming=0.1).shares(flat_profile([1.0, 5.0, 2.0, 3.0, 0.0]), 0.55)
        assert shares[0] == pytest.approx([0.1, 1.0, 0.1, 0.95, 0.1])

    def test_too_little_to_stream_everywhere_is_uniform(self) -> None:
        assert Duo(name="d", streaming=0.1).shares(flat_profile([1.0, 5.0]), 0.95)[0] == pytest.approx([0.05, 0.05])


class TestHeadKV:
    def test_the_pool_is_given_out_by_importance(self) -> None:
        """Of the mean 0.2, base 0.2 * (1 - 1/1.25) = 0.04; a pool of 4 * 0.16 in parts 1 : 2 : 0 : 1."""
        shares = HeadKV(name="h", beta=1.25).shares(flat_profile([1.0, 2.0, 0.0, 1.0]), 0.8)
        assert shares[0] == pytest.approx([0.2, 0.36, 0.04, 0.2])

    def test_more_than_everything_goes_to_the_others_in_proportion(self) -> None:
        shares = HeadKV(name="h", beta=2.0).shares(flat_profile([1.0, 9.0, 0.0, 1.0]), 0.5)
        assert shares[0] == pytest.approx([0.375, 1.0, 0.25, 0.375])


class TestRandom:
    def test_depends_on_the_seed_alone(self) -> None:
        one, another = flat_profile([1.0, 2.0, 3.0]), flat_profile([3.0, 2.0, 1.0])
        assert (Random(name="r").shares(one, 0.5) == Random(name="r").shares(another, 0.5)).all()
        assert (Random(name="r").shares(one, 0.5) != Random(name="r", seed=1).shares(one, 0.5)).any()


class TestLuCurve:
    @staticmethod
    def saved(folder: Path, curve: np.ndarray) -> LuCurve:
        np.save(folder / "curve.npy", curve)
        return LuCurve(name="lu", curve=str(folder / "curve.npy"))

    @pytest.fixture
    def straight(self) -> np.ndarray:
        """One cache loses everything before the other loses anything."""
        targets = np.arange(1, 100) / 100
        return np.stack([np.clip(2 * targets, 0, 1), np.clip(2 * targets - 1, 0, 1)], -1)[:, None]  # [99, 1, 2]

    @pytest.mark.parametrize("ratio", [0.0, 0.005, 0.01, 0.3, 0.305, 0.5, 0.99, 0.995])
    def test_shares_are_the_curve_s_and_lie_on_lines_between_targets(
        self, ratio: float, straight: np.ndarray, tmp_path: Path
    ) -> None:
        shares = self.saved(tmp_path, straight).shares(flat_profile([1.0, 1.0]), ratio)
        assert shares[0] == pytest.approx([1 - min(2 * ratio, 1), 1 - max(2 * ratio - 1, 0)])

    def test_a_curve_that_misses_its_target_is_scaled(self, tmp_path: Path) -> None:
        keeps_too_much = self.saved(tmp_path, np.broadcast_to([0.0, 0.4], (99, 1, 2)).copy())
        assert keeps_too_much.shares(flat_profile([1.0, 1.0]), 0.6)[0] == pytest.approx([0.5, 0.3])
        assert keeps_too_much.shares(flat_profile([1.0, 1.0]), 0.1)[0] == pytest.approx([1.0, 0.8])

    def test_another_model_s_curve_is_refused(self, straight: np.ndarray, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"curve\.npy has shape \[99, 1, 2\], the profile asks for \[99, 1, 3\]"):
            self.saved(tmp_path, straight).shares(flat_profile([1.0, 1.0, 1.0]), 0.5)

    @pytest.mark.parametrize(
        ("curve", "complaint"),
        [
            (np.full((99, 1, 2), 1.5), r"every prune ratio must be a number in \[0, 1\]"),
            (np.full((99, 1, 2), np.nan), r"every prune ratio must be a number in \[0, 1\]"),
            (np.ones((99, 1, 2), dtype=int), "expected prune ratios as floating-point numbers, got int64"),
        ],
    )
    def test_other_numbers_are_refused(self, curve: np.ndarray, complaint: str, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=complaint):
            self.saved(tmp_path, curve).shares(flat_profile([1.0, 1.0]), 0.5)

    def test_a_pickle_is_refused(self, tmp_path: Path) -> None:
        np.save(tmp_path / "curve.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
        with pytest.raises(UserError, match=r"curve\.npy: not a readable \.npy file"):
            LuCurve(name="lu", curve=str(tmp_path / "curve.npy")).shares(flat_profile([1.0, 1.0]), 0.5)

    @pytest.mark.parametrize("content", [b"", b"no array", b"\x93NUMPY"])
    def test_a_broken_file_is_refused(self, content: bytes, tmp_path: Path) -> None:
        (tmp_path / "curve.npy").write_bytes(content)
        with pytest.raises(UserError, match=r"curve\.npy: not a readable \.npy file"):
            LuCurve(name="lu", curve=str(tmp_path / "curve.npy")).shares(flat_profile([1.0, 1.0]), 0.5)

    def test_no_file_is_named(self) -> None:
        with pytest.raises(UserError, match=r"curve: none given; set allocators\.lu\.curve"):
            LuCurve(name="lu").check()
        with pytest.raises(UserError, match=r"curve: no such file: nowhere\.npy"):
            LuCurve(name="lu", curve="nowhere.npy").check()
