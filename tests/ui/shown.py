"""The experiment that the tests look at."""

from __future__ import annotations

import json
from dataclasses import dataclass

from baklava.experiment.paths import ExperimentPaths

RATIOS = (0.5, 0.8)


@dataclass(frozen=True)
class Shown:
    """An experiment in a running server: its address, and what `baklava track` wrote about it."""

    address: str
    layout: ExperimentPaths

    def link(self, name: str) -> str:
        return f"{self.address}/{json.loads(self.layout.tracked.read_text())[name]}"
