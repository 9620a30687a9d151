from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baklava.analysis.bootstrap import Bootstrap, _entropy

numbers = st.lists(st.floats(-10, 10), min_size=1, max_size=20)


def naive(groups, bootstrap: Bootstrap, identity):
    """The definition: draw, average, sort, cut the tails."""
    random = np.random.default_rng(_entropy(bootstrap.seed, identity))
    draws = [random.integers(len(group), size=(bootstrap.n_bootstrap, len(group))) for group in groups]
    means = []
    for b in range(bootstrap.n_bootstrap):
        per_group = [sum(group[i] for i in draw[b]) / len(group) for group, draw in zip(groups, draws, strict=True)]
        means.append(sum(per_group) / len(per_group))
    means.sort()

    def quantile(q: float) -> float:
        position = q * (len(means) - 1)
        low = int(position)
        high = min(low + 1, len(means) - 1)
        return means[low] + (position - low) * (means[high] - means[low])

    tail = (1 - bootstrap.confidence) / 2
    return quantile(tail), quantile(1 - tail)


@settings(deadline=None, max_examples=20)
@given(groups=st.lists(numbers, min_size=1, max_size=3), confidence=st.floats(0.5, 0.99))
def test_interval_equals_a_naive_bootstrap(groups, confidence):
    bootstrap = Bootstrap(n_bootstrap=100, confidence=confidence, seed=3)
    interval = bootstrap.mean_of_means(groups, "a", 0.5)
    assert interval.estimate == pytest.approx(np.mean([np.mean(group) for group in groups]))
    assert (interval.low, interval.high) == pytest.approx(naive(groups, bootstrap, ("a", 0.5)))


def test_blocks_of_draws_are_one_stream(monkeypatch):
    values = np.random.default_rng(0).random(50)
    unblocked = Bootstrap(n_bootstrap=999).mean(values, "a")
    monkeypatch.setattr("baklava.analysis.bootstrap._BLOCK", 170)
    assert Bootstrap(n_bootstrap=999).mean(values, "a") == unblocked


def test_the_stream_depends_on_the_seed_and_on_every_part_of_the_identity():
    values = np.random.default_rng(0).random(30)
    same = Bootstrap(seed=1).mean(values, "model", "task", 0.5)
    assert Bootstrap(seed=1).mean(values, "model", "task", 0.5) == same
    others = [
        Bootstrap(seed=2).mean(values, "model", "task", 0.5),
        Bootstrap(seed=1).mean(values, "model", "task", 0.7),
        Bootstrap(seed=1).mean(values, "modelt", "ask", 0.5),
    ]
    assert all(other.low != same.low and other.estimate == same.estimate for other in others)


def test_constant_values_have_an_interval_without_width():
    assert Bootstrap().mean([0.25] * 12) == (0.25, 0.25, 0.25)


def test_coverage_is_near_the_confidence():
    random = np.random.default_rng(5)
    hits = 0
    for trial in range(400):
        interval = Bootstrap(n_bootstrap=300, confidence=0.9).mean(random.normal(1.0, 2.0, 60), trial)
        hits += interval.low <= 1.0 <= interval.high
    assert 0.85 <= hits / 400 <= 0.95


@pytest.mark.parametrize("groups", [[], [[]], [[1.0], []], [[[1.0]]]])
def test_nothing_to_resample_is_refused(groups):
    with pytest.raises(ValueError, match="one or more"):
        Bootstrap().mean_of_means(groups)


def test_questions_about_one_context_say_no_more_than_it_does():
    random = np.random.default_rng(6)
    hits = {"clusters": 0, "samples": 0}
    contexts = np.repeat(np.arange(30), 8)
    for trial in range(300):
        values = random.normal(1.0, 1.0, 30)[contexts] + random.normal(0.0, 1.0, 240)
        for name, clusters in (("clusters", contexts), ("samples", None)):
            interval = Bootstrap(n_bootstrap=300, confidence=0.9).mean(values, trial, clusters=clusters)
            hits[name] += interval.low <= 1.0 <= interval.high
    assert 0.84 <= hits["clusters"] / 300 <= 0.95
    assert hits["samples"] / 300 <= 0.65  # what intervals would be that take them for as many contexts


def test_clusters_of_one_sample_change_nothing():
    values = np.random.default_rng(0).random(30)
    assert Bootstrap().mean(values, "a", clusters=range(30)) == Bootstrap().mean(values, "a")
