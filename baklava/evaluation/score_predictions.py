"""`baklava score`: scores predictions that were made elsewhere."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from baklava.errors import UserError
from baklava.experiment.compose import compose_task
from baklava.tasks.longbench import LENGTH_CLASSES, LongBench, find_length_class
from baklava.tasks.metrics import WITH_CLASSES, check_metric
from baklava.tasks.text.rows import read_jsonl


def score(task: str, predictions: Path) -> None:
    """Print `METRIC MEAN`, and for LongBench-E also a line `METRIC LENGTHS MEAN` per length class; means are in [0, 1].

    `predictions` is a JSONL file with the fields `prediction` and `answers`, `all_classes` for the metrics
    `classification` and `mrcr`, and `length` for the length classes of LongBench-E. Raises `UserError` that names file,
    line and field.
    """
    chosen = compose_task(task).build()
    metric = chosen.metric_name()
    check_metric(metric)
    by_length = isinstance(chosen, LongBench) and chosen.extended
    scores: list[float] = []
    groups: dict[str, list[float]] = defaultdict(list)
    for row in read_jsonl(predictions):
        answers = row.texts("answers")
        classes = row.texts("all_classes") if metric in WITH_CLASSES else ()
        try:
            scores.append(chosen.score(row.text("prediction"), answers, classes))
        except UserError as error:
            message = str(error)
            raise UserError(message if message.startswith(row.location) else f"{row.location}: {message}") from None
        if by_length:
            groups[find_length_class(row.count("length"))].append(scores[-1])
    if not scores:
        raise UserError(f"{predictions}: no predictions; give a JSONL file with the fields prediction and answers")
    print(f"{metric} {_mean(scores):.4f}")
    for name in LENGTH_CLASSES:
        if groups[name]:
            print(f"{metric} {name} {_mean(groups[name]):.4f}")


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
