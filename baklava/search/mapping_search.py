"""The parameter search: which mapping from importance to shares loses least on calibration continuations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

import numpy as np
from optuna.trial import Trial as Asked

from baklava.allocation.base import SearchedAllocator, SearchPoint, budgets_of
from baklava.allocation.fitted import MAPPING, Fitted, Trial
from baklava.budgets import Budgets
from baklava.calibration.prompts import Prompt
from baklava.importance.profile import Profile
from baklava.inference.continuation_loss import LossSource, check_losses
from baklava.search.allowance import Allowance
from baklava.search.study import ROUND, Study
from baklava.system.fingerprint import fingerprint
from baklava.system.progress import Progress

# Fractions of the prompts after which trials are pruned, and the fraction of trials that continues: the better half
# after a quarter of the prompts, which tells the bad ones; then the best quarter, by when ranks hardly change any more.
PRUNING_STAGES = {0.25: 0.5, 0.5: 0.25, 1.0: 1.0}
SEE_ALL = 2  # the first trials, uniform and the mapping as configured, see every prompt
NEIGHBOURS = 2  # other ratios, the nearest ones, whose best mapping is tried


@dataclass
class _Running:
    """A trial that is not finished: its budgets, and its losses on the prompts that it has seen."""

    asked: Asked
    budgets: Budgets
    losses: list[float] = field(default_factory=list)

    @property
    def loss(self) -> float:
        return fmean(self.losses)


class MappingSearch:
    """Rounds of trials at every ratio of one method.

    All ratios share the passes over the prompts. A trial is pruned after a stage where it is not among the better
    fraction of those that got as far: of its round, and of earlier ones that saw every prompt. (Optuna's own median
    pruner compares the best that a trial ever reported; as a mean over ever more prompts moves up and down with the
    prompts, that says little.) Uniform and the configured mapping see every prompt, and the winner is the lowest loss
    among those that did, so it is never worse than either on the calibration prompts.
    """

    def __init__(
        self,
        allocator: SearchedAllocator,
        profile: Profile,
        ratios: Sequence[float],
        prompts: Sequence[Prompt],
        losses: LossSource,
        *,
        seed: int,
        known: Mapping[float, SearchPoint] | None = None,
        allowance: Allowance | None = None,
    ):
        self._allowance = allowance or Allowance()
        self._allocator = allocator
        self._known = dict(known or {})
        self._profile = profile
        self._prompts = prompts
        self._losses = losses
        space = allocator.space(profile)
        self.studies = {ratio: Study(space, seed=fingerprint(seed, ratio)) for ratio in ratios}

    def run(self, n_rounds: int) -> Fitted:
        """The best mapping for every ratio, after all rounds. Raises `UserError` where losses are not finite."""
        full = Budgets.uniform(n_layers=self._profile.n_layers, n_kv_heads=self._profile.n_kv_heads, ratio=0.0)
        loss_full = fmean(float(self._losses.losses(prompt, [full])[0]) for prompt in self._prompts)
        check_losses(loss_full, model=self._profile.model)
        name = f"search {self._profile.model} {self._allocator.name}"
        with Progress(total=n_rounds * ROUND * len(self.studies), desc=name, unit="trial") as progress:
            for number in range(n_rounds):
                if number and not self._allowance.is_left():
                    break  # after a round, every ratio has trials that saw every prompt
                self.round(progress)
        budgets = {ratio: self._winner(ratio, loss_full) for ratio in self.studies}
        return Fitted(budgets, list(self._trials(loss_full)))

    def round(self, progress: Progress) -> None:
        """Ask every study for new trials and run them."""
        running = {ratio: self._ask(ratio) for ratio in self.studies}
        n_seen = 0
        for stop, fraction in _stages(len(self._prompts)).items():
            if not any(running.values()):
                return  # earlier trials are better than all of this round's
            for prompt in self._prompts[n_seen:stop]:
                rows = [trial for trials in running.values() for trial in trials]
                losses = self._losses.losses(prompt, [trial.budgets for trial in rows])
                self._allowance.spend([prompt], len(rows), of=len(self._prompts))
                for trial, loss in zip(rows, losses, strict=True):
                    trial.losses.append(float(loss) if np.isfinite(loss) else np.inf)
            n_seen = stop
            for ratio, trials in running.items():
                running[ratio] = self._prune(ratio, trials, stop, fraction)
                progress.update(len(trials) - len(running[ratio]))
            self._show(progress)

    def _budgets(self, ratio: float, point: SearchPoint) -> Budgets:
        return budgets_of(self._allocator.at(point), self._profile, ratio)

    def _ask(self, ratio: float) -> list[_Running]:
        """The trials of a round: points that should be tried first, then what the sampler proposes."""
        study = self.studies[ratio]
        points = iter(list(self._untried_points(ratio)))
        asked = [study.ask(next(points, None)) for _ in range(ROUND)]
        return [_Running(trial, self._budgets(ratio, trial.params)) for trial in asked]

    def _untried_points(self, ratio: float) -> Iterator[SearchPoint]:
        """The allocator's first points, then the best of the nearest ratios, unless they were tried."""
        tried = [trial.params for trial in self.studies[ratio].trials]
        points = list(self._allocator.starts(self._profile))
        best = {other: study.best.params for other, study in self.studies.items() if study.complete}
        others = [other for other in (*self.studies, *self._known) if other != ratio]
        nearest = sorted(others, key=lambda other: abs(other - ratio))[:NEIGHBOURS]
        points += [point for other in nearest if (point := (best | self._known).get(other))]
        for point in points:
            if point not in tried:
                tried.append(point)
                yield point

    def _prune(self, ratio: float, running: list[_Running], stop: int, fraction: float) -> list[_Running]:
        """Finish the trials that end after `stop` prompts; return the better `fraction`, which see more of them."""
        study = self.studies[ratio]
        for trial in running:
            trial.asked.report(trial.loss, stop)
        losses = [trial.intermediate_values[stop] for trial in study.complete] + [trial.loss for trial in running]
        threshold = float(np.quantile(losses, fraction, method="lower"))
        remaining = []
        for trial in running:
            if stop == len(self._prompts):
                study.finish(trial.asked)
            elif trial.loss > threshold and trial.asked.number >= SEE_ALL:
                study.finish(trial.asked, pruned=True)
            else:
                remaining.append(trial)
        return remaining

    def _show(self, progress: Progress) -> None:
        best = {ratio: study.best.value for ratio, study in self.studies.items() if study.complete}
        if best:
            progress.set_postfix_str(
                "best loss " + ", ".join(f"{loss:.3f} at {ratio:g}" for ratio, loss in best.items())
            )

    def _winner(self, ratio: float, loss_full: float) -> Budgets:
        study = self.studies[ratio]
        best, uniform = study.best, study.trials[0]
        assert best.value is not None and uniform.value is not None  # both saw every prompt
        check_losses(best.value, model=self._profile.model)
        mapped = self._budgets(ratio, best.params)
        losses = {"loss": best.value, "loss_uniform": uniform.value, "loss_full": loss_full}
        return Budgets.from_shares(
            mapped.shares,
            ratio=mapped.ratio,
            model=mapped.model,
            allocator=self._allocator.name,
            parameters={"mapping": mapped.allocator, **mapped.parameters},
            provenance={**mapped.provenance, **losses, "trial": best.number, "n_trials": len(study.trials)},
            group=mapped.group,
            page=mapped.page,
        )

    def _trials(self, loss_full: float) -> Iterator[Trial]:
        for ratio, study in self.studies.items():
            chosen = study.best.number
            n_complete = len(self._prompts)
            for trial in study.trials:
                seen = trial.intermediate_values  # mean loss by number of prompts
                yield Trial(
                    ratio=ratio,
                    number=trial.number,
                    move=MAPPING,
                    loss=seen[max(seen)],
                    n_prompts=max(seen),
                    early_loss=seen[min(seen)],
                    complete=max(seen) == n_complete,
                    chosen=trial.number == chosen,
                    loss_full=loss_full,
                    parameters=trial.params,
                )


def _stages(n_prompts: int) -> dict[int, float]:
    """Numbers of prompts after which trials are pruned, and the better fraction that continues."""
    return {max(1, round(seen * n_prompts)): fraction for seen, fraction in PRUNING_STAGES.items()}
