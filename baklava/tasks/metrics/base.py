"""The type of a metric."""

from __future__ import annotations

from collections.abc import Callable, Sequence

# (prediction, answers, all_classes) -> quality in [0, 1]. Few look at the classes (`WITH_CLASSES`).
Metric = Callable[[str, Sequence[str], Sequence[str]], float]


def best_of(score: Callable[[str, str], float]) -> Metric:
    """Make the metric that scores a prediction against each answer and keeps the best, as LongBench does."""

    def metric(prediction: str, answers: Sequence[str], all_classes: Sequence[str] = ()) -> float:
        return max(score(prediction, answer) for answer in answers)

    metric.__doc__ = score.__doc__
    return metric
