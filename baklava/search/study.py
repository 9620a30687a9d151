"""The Optuna study of a search at one ratio."""

from __future__ import annotations

from collections.abc import Mapping

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import TPESampler
from optuna.trial import FrozenTrial, Trial, TrialState

from baklava.allocation.base import SearchPoint
from baklava.system.fingerprint import fingerprint

ROUND = 8  # trials of a ratio that are asked for together

optuna.logging.set_verbosity(optuna.logging.WARNING)


class Study:
    """Trials at one ratio by number, each finished at its end or pruned.

    What is asked depends on the finished rounds, the space and the seed alone, not on a sampler's running state. So a
    search that starts again with the losses it had measured asks for the same trials.
    """

    def __init__(self, space: Mapping[str, BaseDistribution], *, seed: str):
        self._study = optuna.create_study()
        self._space = dict(space)
        self._seed = seed

    @property
    def trials(self) -> list[FrozenTrial]:
        """All trials so far, in order."""
        return self._study.get_trials(deepcopy=False)

    @property
    def complete(self) -> list[FrozenTrial]:
        """Trials that saw every prompt, in order."""
        return [trial for trial in self.trials if trial.state == TrialState.COMPLETE]

    @property
    def best(self) -> FrozenTrial:
        """The lowest loss among trials that saw every prompt; of equal ones the first."""
        return min(self.complete, key=lambda trial: (trial.value, trial.number))

    def ask(self, point: SearchPoint | None = None) -> Trial:
        """A new trial, at a point of the space or where the sampler expects most."""
        number = len(self.trials)
        seed = int(fingerprint(self._seed, number)[:8], 16)
        self._study.sampler = TPESampler(n_startup_trials=ROUND, seed=seed)
        if point is not None:
            self._study.enqueue_trial(point)
        return self._study.ask(self._space)

    def finish(self, trial: Trial, *, pruned: bool = False) -> None:
        """End a trial with the last loss that it reported."""
        if pruned:
            self._study.tell(trial, state=TrialState.PRUNED)
        else:
            values = self.trials[trial.number].intermediate_values
            self._study.tell(trial, values[max(values)])
