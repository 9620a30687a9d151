"""The files of an experiment that figures and page are drawn from."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from baklava.analysis.depth_by_length import DepthByLength, read_depth_by_length
from baklava.analysis.headline import Headline
from baklava.analysis.results import load_budgets, read_summary
from baklava.budgets import Budgets
from baklava.evaluation.measurements import read_measurements
from baklava.experiment.jobs import ResultFiles
from baklava.importance.profile import Profile
from baklava.report.data.looks import Method


@dataclass(frozen=True, eq=False)
class Results:
    """What the files hold, by model: budgets by method and ratio, needle grids by task."""

    summary: pd.DataFrame
    headline: Headline
    profiles: dict[str, Profile]
    budgets: dict[str, dict[Method, list[Budgets]]]
    measurements: dict[str, pd.DataFrame]
    needle_grids: dict[str, dict[str, DepthByLength]]

    @classmethod
    def read(cls, files: ResultFiles) -> Results:
        """Raises `UserError` for a missing, broken or newer file."""
        return cls(
            summary=read_summary(files.summary),
            headline=Headline.load(files.headline),
            profiles={model: Profile.load(path) for model, path in files.profiles.items()},
            budgets=load_budgets(files.budgets),
            measurements={model: read_measurements(path) for model, path in files.measurements.items()},
            needle_grids={
                model: {task: read_depth_by_length(path) for task, path in grids.items()}
                for model, grids in files.needle_grids.items()
            },
        )
