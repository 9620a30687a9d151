"""The needle lies where its cell says."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import yaml

from baklava.errors import UserError
from baklava.experiment.components import TaskConfig
from baklava.tasks.ruler.needle_grid import NeedleGrid
from baklava.tasks.text.noise import NOISE_LINE

CONF = Path(__file__).parents[3] / "conf" / "task" / "needle_grid.yaml"


def words(text: str) -> int:
    return len(text.split())


@pytest.fixture
def grid() -> NeedleGrid:
    task = TaskConfig.model_validate(yaml.safe_load(CONF.read_text())).build()
    assert isinstance(task, NeedleGrid)
    return task


def test_every_cell_comes_equally_often(grid: NeedleGrid) -> None:
    assert grid.n_cells == 20
    cells = Counter(grid.cell(index) for index in range(60))
    assert set(cells.values()) == {3}
    assert set(cells) == {(depth, length) for depth in grid.depths for length in grid.lengths}


def test_the_needle_is_at_its_depth_of_a_text_of_its_length(grid: NeedleGrid) -> None:
    for index in range(20):
        depth, share = grid.cell(index)
        sample = grid.sample(split="evaluation", seed=0, index=index, length=4000, count_tokens=words)
        assert 0.9 * share * 4000 <= words(sample.prompt) + sample.max_new_tokens <= share * 4000
        lines = sample.context.split("\n")[1:-1]
        [place] = [i for i, line in enumerate(lines) if line != NOISE_LINE]
        assert place / (len(lines) - 1) == pytest.approx(depth, abs=0.02)
        assert sample.group == f"length {round(share * 4000)}, depth {depth:g}"
        assert grid.score(grid.reference_answer(sample), sample.answers) == 1.0


def test_an_essay_may_be_the_haystack(essay_file: Path) -> None:
    grid = NeedleGrid(name="g", haystack="essay", essay=str(essay_file), depths=(0.0, 0.5, 1.0))
    for index, depth in enumerate((0.0, 0.5, 1.0)):
        sample = grid.sample(split="evaluation", seed=0, index=index, length=3000, count_tokens=words)
        place = sample.context.index("One of the special magic") / len(sample.context)
        assert place == pytest.approx(depth, abs=0.06)


def test_needles_differ_between_samples_of_a_cell(grid: NeedleGrid) -> None:
    first, second = (
        grid.sample(split="evaluation", seed=0, index=index, length=4000, count_tokens=words) for index in (0, 20)
    )
    assert first.group == second.group
    assert first.answers != second.answers


def test_takes_one_needle() -> None:
    with pytest.raises(UserError, match="a needle grid has one needle"):
        NeedleGrid(name="g", n_keys=2)


@pytest.mark.parametrize("depths", [[], [1.5], [-0.1]])
def test_depths_are_shares(depths: list[float]) -> None:
    with pytest.raises(ValueError, match="depths"):
        TaskConfig.model_validate({"name": "g", "family": "needle_grid", "depths": depths})
