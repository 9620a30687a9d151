"""The recipe of a reference model: its learning-rate schedule and the weights of the loss."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from baklava.training.documents import Mark
from baklava.training.recipe import Recipe

ARCHITECTURE = {
    "family": "llama",
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 4,
}


def recipe(**changes: Any) -> Recipe:
    values = {
        "name": "r",
        "seed": 0,
        "architecture": ARCHITECTURE,
        "stages": [{"length": 32, "rows": 1, "mix": {"repetition": 1.0}}],
        "cycles": [{"steps": 1000, "decay_steps": 200, "learning_rate": 2e-3}],
        "warmup_steps": 100,
        "final_learning_rate": 1e-4,
    }
    return Recipe.model_validate({**values, **changes})


class TestLearningRate:
    @pytest.mark.parametrize(
        ("step", "rate"),
        [
            (0, 2e-3 / 100),  # never zero
            (49, 1e-3),
            (99, 2e-3),
            (100, 2e-3),
            (800, 2e-3),
            (900, (2e-3 + 1e-4) / 2),
            (1000, 1e-4),
        ],
    )
    def test_rises_stays_and_falls(self, step: int, rate: float) -> None:
        assert recipe().learning_rate_at(step) == pytest.approx(rate)

    @given(st.integers(1, 400), st.integers(1, 400))
    def test_never_jumps(self, warmup: int, decay: int) -> None:
        made = recipe(warmup_steps=warmup, cycles=[{"steps": 1000, "decay_steps": decay, "learning_rate": 2e-3}])
        rates = [made.learning_rate_at(step) for step in range(1001)]
        steepest = 2e-3 / min(warmup, decay)
        assert all(abs(after - before) <= steepest + 1e-12 for before, after in pairwise(rates))
        assert max(rates) == 2e-3
        assert min(rates) > 0

    def test_a_second_cycle_rises_and_falls_again(self) -> None:
        first = {"steps": 1000, "decay_steps": 200, "learning_rate": 2e-3}
        made = recipe(cycles=[first, {"steps": 500, "decay_steps": 100, "learning_rate": 1e-3}])
        assert made.steps == 1500
        assert made.learning_rate_at(999) < 1.2e-4
        assert [made.learning_rate_at(step) for step in (1049, 1099, 1400)] == pytest.approx([5e-4, 1e-3, 1e-3])
        assert made.learning_rate_at(1450) == pytest.approx((1e-3 + 1e-4) / 2)
        assert made.learning_rate_at(1500) == pytest.approx(1e-4)


class TestLossWeight:
    def test_answers_and_choices_always_count(self) -> None:
        rng = random.Random(0)
        made = recipe(answer_weight=5.0, choice_weight=20.0)
        assert {made.draw_weight(Mark.ANSWER, rng) for _ in range(50)} == {5.0}
        assert {made.draw_weight(Mark.CHOICE, rng) for _ in range(50)} == {20.0}

    def test_background_keeps_its_weight_on_average_though_most_of_it_is_left_out(self) -> None:
        rng = random.Random(0)
        made = recipe(background_weight=0.1, background_fraction=0.25)
        weights = [made.draw_weight(Mark.BACKGROUND, rng) for _ in range(20_000)]
        assert set(weights) == {0.0, 0.4}
        assert sum(weights) / len(weights) == pytest.approx(0.1, rel=0.05)


@pytest.mark.parametrize(
    "changes",
    [
        {"cycles": []},
        {"cycles": [{"steps": 0}]},
        {"nonsense": 1},
        {"architecture": {**ARCHITECTURE, "family": "gpt2"}},
        {"architecture": {**ARCHITECTURE, "nonsense": 1}},
        {"stages": [{"length": 8, "rows": 1, "mix": {}}]},
        {"stages": [{"length": 32, "rows": 0, "mix": {}}]},
    ],
    ids=str,
)
def test_impossible_recipes_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        recipe(**changes)
