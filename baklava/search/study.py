"""Optuna studies of a search, one per ratio, in a journal from which a killed search goes on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, Trial, TrialState

from baklava.allocation.base import SearchPoint
from baklava.errors import UserError
from baklava.system.fingerprint import fingerprint
from baklava.system.lock import wait_for_lock

ROUND = 8  # trials of a ratio that are asked for together

optuna.logging.set_verbosity(optuna.logging.WARNING)


class _Held(JournalFileOpenLock):
    """No lock per line: the search holds the whole journal, and the system takes that back from a killed one."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        pass


@contextmanager
def journal(path: Path) -> Iterator[JournalStorage]:
    """Optuna's journal, a file of JSON lines, for one search at a time; a line that was cut short is dropped.

    Waits for another search to end: that of a workflow that was killed, for one. Raises `UserError` for a file that is
    no journal.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        wait_for_lock(file, f"{path}: waiting while another search is at work on it")
        _drop_unfinished_line(file)
        yield _storage(path)


def _storage(path: Path) -> JournalStorage:
    try:
        if written := path.read_bytes():
            json.loads(written.splitlines()[-1])  # the one line that Optuna does not mind
        return JournalStorage(JournalFileBackend(str(path), lock_obj=_Held(str(path))))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not a readable journal of a search ({error!r}); move it away") from None


def _drop_unfinished_line(file: BinaryIO) -> None:
    file.seek(0)
    written = file.read()
    file.truncate(written.rfind(b"\n") + 1)


class Study:
    """What was tried at one ratio: trials by number, each finished at its end or pruned.

    Trials run in memory; the journal gets those of a finished round. What is asked depends on the finished rounds, the
    space and the seed alone, not on a sampler's running state, so that a search that was killed asks the same.
    """

    def __init__(self, storage: JournalStorage, name: str, space: Mapping[str, BaseDistribution], *, seed: str):
        self._saved = optuna.create_study(storage=storage, study_name=name, load_if_exists=True)
        self._running = optuna.create_study()
        self._space = dict(space)
        self._seed = seed

    @property
    def n_rounds_saved(self) -> int:
        """A round that was cut short while it was saved does not count, and is run again."""
        return len(self._saved.get_trials(deepcopy=False)) // ROUND

    def resume(self, n_rounds: int) -> None:
        """Go on from the first saved rounds."""
        self._running.add_trials(self._saved.trials[: n_rounds * ROUND])

    @property
    def trials(self) -> list[FrozenTrial]:
        """All trials so far, in order."""
        return self._running.get_trials(deepcopy=False)

    @property
    def complete(self) -> list[FrozenTrial]:
        """Those that saw every prompt, in order."""
        return [one for one in self.trials if one.state == TrialState.COMPLETE]

    @property
    def best(self) -> FrozenTrial:
        """The lowest loss among those that saw every prompt; of equal ones the first."""
        return min(self.complete, key=lambda one: (one.value, one.number))

    def ask(self, point: SearchPoint | None = None) -> Trial:
        """A new trial, at a point of the space or where the sampler expects most."""
        number = len(self.trials)
        seed = int(fingerprint(self._seed, number)[:8], 16)
        self._running.sampler = TPESampler(n_startup_trials=ROUND, seed=seed)
        if point is not None:
            self._running.enqueue_trial(point)
        return self._running.ask(self._space)

    def finish(self, trial: Trial, *, pruned: bool = False) -> None:
        """End a trial with the last loss that it reported."""
        if pruned:
            self._running.tell(trial, state=TrialState.PRUNED)
        else:
            values = self.trials[trial.number].intermediate_values
            self._running.tell(trial, values[max(values)])

    def save(self, facts: Mapping[str, float]) -> None:
        """Copy to the journal what it does not hold yet, with what is to be remembered of the round."""
        for trial in self._running.trials[len(self._saved.get_trials(deepcopy=False)) :]:
            for name, value in facts.items():
                trial.set_user_attr(name, value)
            self._saved.add_trial(trial)

    @property
    def facts(self) -> list[dict[str, float]]:
        """What is remembered of each round so far."""
        return [one.user_attrs for one in self._saved.trials[: len(self.trials) : ROUND]]
