"""Runs the evaluation engine on a needle task, for several tests."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from baklava.evaluation.engine import Engine
from baklava.evaluation.record_schema import TIMED, Record
from baklava.evaluation.samples import CellSpec
from baklava.experiment.settings import EvaluateConfig
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
) -> dict[tuple[int, str], Record]:
    """Records by (sample, label of the cell), without what is timed."""
    engine = Engine(loaded, TASK, config(**settings))
    labels = {spec.identify(loaded.name, TASK.name, engine.settings): spec.label for spec in cells}
    return {
        (record.sample, labels[record.cell]): replace(record, **dict.fromkeys(TIMED, 0.0))
        for finished in engine.answer(engine.encode(sample, cells) for sample in samples)
        for record in finished
    }
