"""Searches that have ended, ratio by ratio, so that a ratio that is added later leaves the others as they are."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import reduce
from typing import Any

from baklava.allocation.fitted import Fitted, Trial
from baklava.budgets import Budgets
from baklava.search.trace import Cost
from baklava.system.append_log import AppendLog
from baklava.system.fingerprint import fingerprint

# Part of the fingerprint of a finished search: raise it with a change after which a search may find other budgets.
VERSION = 2


@dataclass(frozen=True)
class FinishedRatio:
    """What a search found at one ratio, what it tried there, and what it cost at all of its ratios together."""

    budgets: Budgets
    trials: tuple[Trial, ...]
    search: str  # which search it was, the same for all ratios that were searched together
    cost: Cost

    @property
    def point(self) -> Mapping[str, Any]:
        """The parameters of the chosen mapping; empty where none was tried."""
        return next((trial.parameters for trial in self.trials if trial.chosen), {})


class FinishedSearches:
    """Finished ratios in a log, under a fingerprint of all that determines a search but the other ratios."""

    def __init__(self, log: AppendLog, *determined_by: Any):
        self._log = log
        self._name = fingerprint("finished", VERSION, *determined_by)

    def load(self, ratios: Iterable[float]) -> dict[float, FinishedRatio]:
        """Those of the ratios that are finished."""
        return {ratio: _parsed(self._log[key]) for ratio in ratios if (key := self._key(ratio)) in self._log}

    def save(self, fitted: Fitted, cost: Cost) -> None:
        """Store the ratios of one search, all or none."""
        search = fingerprint(self._name, *fitted.budgets, len(self._log))
        entries = {}
        for ratio, budgets in fitted.budgets.items():
            trials = [asdict(trial) for trial in fitted.trials if trial.ratio == ratio]
            values = {**vars(budgets), "shares": budgets.shares.tolist()}
            values["bits"] = None if budgets.bits is None else budgets.bits.tolist()
            # As a text of its own, because losses may be infinite, for which a line of the log has no number.
            entry = {"budgets": values, "trials": trials, "search": search, "cost": asdict(cost)}
            entries[self._key(ratio)] = json.dumps(entry)
        self._log.add(entries)

    def _key(self, ratio: float) -> str:
        return fingerprint(self._name, ratio)


def _parsed(entry: str) -> FinishedRatio:
    values = json.loads(entry)
    trials = tuple(Trial(**trial) for trial in values["trials"])
    return FinishedRatio(Budgets.from_shares(**values["budgets"]), trials, values["search"], Cost(**values["cost"]))


def merge(finished: Mapping[float, FinishedRatio]) -> tuple[Fitted, Cost]:
    """The budgets and trials of finished ratios as of one search, and what all searches took that found them."""
    costs = {ratio.search: ratio.cost for ratio in finished.values()}
    budgets = {ratio: found.budgets for ratio, found in finished.items()}
    return Fitted(budgets, [trial for found in finished.values() for trial in found.trials]), reduce(
        Cost.__add__, costs.values()
    )
