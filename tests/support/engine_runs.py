"""Runs of the evaluation engine on a made-up task, as several tests need them."""

from __future__ import annotations

from typing import Any

from baklava.evaluation.engine import Engine
from baklava.evaluation.samples import CellSpec
from baklava.experiment.schema import EvaluateConfig
from baklava.models.load import LoadedModel
from baklava.tasks import NeedleInHaystack, Sample

LENGTH = 400


TASK = NeedleInHaystack(name="needle", max_new_tokens=12)


def config(**changed: Any) -> EvaluateConfig:
    return EvaluateConfig(n_samples=1, length=LENGTH, **changed)


def sample(loaded: LoadedModel, index: int, *, length: int = LENGTH) -> Sample:
    return TASK.sample(split="train", seed=0, index=index, length=length, count_tokens=loaded.count_tokens)


def records(
    loaded: LoadedModel, cells: list[CellSpec], samples: list[Sample], **settings: Any
) -> dict[tuple[int, str], dict[str, Any]]:
    """Records by (sample, cell), without the seconds."""
    engine = Engine(loaded, TASK, config(**settings))
    found = {}
    for answers in engine.answers(engine.work(one, cells) for one in samples):
        for one in answers:
            kept = {key: value for key, value in one.record.items() if key != "seconds"}
            found[one.work.sample.index, one.cell.label] = kept
    return found
