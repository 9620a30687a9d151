"""The study of a search at one ratio: what it asks for depends on the seed and on the losses so far alone."""

from __future__ import annotations

from optuna.distributions import FloatDistribution

from baklava.search.study import Study

SPACE = {"x": FloatDistribution(0.0, 1.0)}


def points(study: Study, n: int) -> list[float]:
    asked = []
    for _ in range(n):
        trial = study.ask()
        trial.report(abs(trial.params["x"] - 0.3), 1)
        study.finish(trial)
        asked.append(trial.params["x"])
    return asked


def test_what_is_asked_depends_on_the_seed_and_on_the_losses() -> None:
    first, same, other = (Study(SPACE, seed=seed) for seed in "aab")
    asked = points(first, 20)
    assert points(same, 20) == asked
    assert points(other, 20) != asked
    assert len(set(asked)) == len(asked)


def test_the_sampler_learns() -> None:
    asked = points(Study(SPACE, seed="a"), 40)
    assert sum(abs(x - 0.3) < 0.15 for x in asked[20:]) > 9  # 6 by chance
