"""What allocators are fitted to: the profile of a job, and searches that measure losses on its calibration prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from tqdm import tqdm

from baklava.allocation import Allocator, Fitted, SearchedAllocator
from baklava.allocation.base import Width, entries_removed
from baklava.allocation.fitted import CAPPED, Grown, Optimum, Shares
from baklava.budgets.bits import EXACT
from baklava.calibration.prompts import Calibration, Prompt
from baklava.experiment.jobs import AllocateJob
from baklava.importance.profile import Profile
from baklava.models.files import model_identity
from baklava.search.allowance import Allowance
from baklava.search.finished import FinishedRatio, FinishedSearches, merge
from baklava.search.trace import Cost
from baklava.system.append_log import AppendLog
from baklava.system.job_log import tell
from baklava.system.progress import Progress

if TYPE_CHECKING:
    from baklava.inference.stored_losses import LossStore


class SearchContext:
    """The `FitContext` of a job. Searches share one store of losses, which it holds until it is left.

    What a search asks for depends on the losses it has seen and on its seed alone. So a search that was killed asks the
    same again, finds in the store what it had measured, and continues after its last prompt.
    """

    def __init__(self, job: AllocateJob, profile: Profile):
        self.profile = profile
        self.ratios = tuple(job.budgets)
        self._job = job
        self._stack = ExitStack()
        self._finished: dict[float, FinishedRatio] = {}
        self._allowance = Allowance(job.search.max_prefills)
        self._n_trials = self._n_replays = self._n_refined = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def fit(self, allocator: Allocator) -> tuple[Fitted, Cost | None]:
        """Budgets at every ratio, and what their searches took.

        Ratios at which an earlier job with the same settings has searched keep their budgets; only the others are
        searched; a search for mappings begins at the best of those.
        """
        if not (allocator.searches and self.ratios):
            return allocator.fit(self), None
        searches = FinishedSearches(self._log, *self._determined_by())
        asked, self._finished = self.ratios, searches.load(self.ratios)
        self.ratios = tuple(ratio for ratio in asked if ratio not in self._finished)
        if self.ratios:
            if self._finished:
                kept = ", ".join(f"{ratio:g}" for ratio in self._finished)
                tqdm.write(
                    f"search {self._job.model.name} {allocator.name}: ratios {kept} stay as an earlier search left them"
                )
            searches.save(self._with_cap(allocator.fit(self)), self.cost())
        return merge(searches.load(asked))

    def _with_cap(self, fitted: Fitted) -> Fitted:
        """The same, with a word in the trace where `search.max_prefills` stopped the search."""
        if not self._allowance.capped:
            return fitted
        job = self._job
        tell(
            f"search {job.model.name} {job.allocator.name}/{job.eviction.name}: stopped by search.max_prefills="
            f"{job.search.max_prefills}; the budgets are the best so far, and a higher number may find better ones"
        )
        trials = [replace(trial, move=trial.move + CAPPED) if trial.chosen else trial for trial in fitted.trials]
        return replace(fitted, trials=trials)

    def _determined_by(self) -> list[Any]:
        """All that the budgets of a ratio follow from, beside the mappings that earlier searches found for others."""
        job, profile, curves = self._job, self.profile, self.profile.curves
        policy = job.eviction.build()
        return [
            *(model_identity(job.model), profile.model, policy.family, asdict(policy)),
            job.allocator.model_dump(mode="json"),
            job.search.model_dump(mode="json", exclude={"batch_rows", "memory_gib"}),
            [asdict(prompt) for prompt in self._prompts],
            [profile.fingerprint, profile.meta.get("calibration"), profile.meta.get("path")],
            None if curves is None else curves.fingerprint,
        ]

    def search(self, allocator: SearchedAllocator) -> Fitted:
        if not self.ratios:
            return Fitted({})
        from baklava.search.mapping_search import MappingSearch  # Optuna, which most allocators do without

        settings = self._job.search
        search = MappingSearch(
            allocator,
            self.profile,
            self.ratios,
            self._prompts,
            self._losses,
            seed=settings.seed,
            known={ratio: dict(found.point) for ratio, found in self._finished.items()},
            allowance=self._allowance,
        )
        fitted = search.run(settings.n_rounds)
        self._n_trials += len(fitted.trials)
        self._n_replays += sum(trial.n_prompts for trial in fitted.trials)
        return fitted

    def local_search(
        self,
        starts: Mapping[float, Mapping[str, Shares]],
        *,
        rounds: int,
        step: float,
        floor: float,
        group: int = 1,
    ) -> dict[float, Optimum]:
        if not starts:
            return {}
        from baklava.inference.continuation_loss import check_losses
        from baklava.search.local_search import MeanLosses, search_locally

        model, n_prompts = self._job.model.name, len(self._prompts)
        shape = (self.profile.n_layers, self.profile.n_kv_heads)
        name = f"refine {model} {self._job.allocator.name}"
        # Starts, and in each round two probes of every KV cache and the moves, at most.
        n_caches, n_starts = shape[0] * shape[1] // group, sum(map(len, starts.values()))
        n_rows = 1 + n_starts + rounds * len(starts) * (2 * n_caches + n_caches.bit_length())
        with Progress(total=n_prompts * n_rows, desc=name, unit="row") as progress:
            losses = MeanLosses(self._losses, self._prompts, shape, progress, self._allowance, group)
            [loss_full] = losses({0.0: [np.ones(n_caches)]})[0.0]
            check_losses(loss_full, model=model)
            searches = search_locally(starts, losses, rounds=rounds, step=step, floor=floor, allowance=self._allowance)
        check_losses([search.best.loss for search in searches.values()], model=model)
        self._n_refined += len(searches)
        return {
            ratio: search.optimum(loss_full=float(loss_full), n_prompts=n_prompts) for ratio, search in searches.items()
        }

    def grow(
        self, *, refine: int, group: int = 1, widths: Sequence[Width] = (EXACT,), per_cache: bool = False
    ) -> dict[float, Grown]:
        if not self.ratios:
            return {}
        from baklava.search.growth import Growth
        from baklava.search.widths import search_widths

        model, shape = self._job.model.name, (self.profile.n_layers, self.profile.n_kv_heads)
        totals = [1.0 - entries_removed(ratio, width) for ratio in self.ratios for width in widths]
        below = max((total for total in totals if total < 1.0), default=0.0)
        with Progress(desc=f"grow {model} {self._job.allocator.name}", unit="prompt") as progress:
            growth = Growth(self._losses, self._prompts, shape, progress, self._allowance, group)
            if below or per_cache:
                growth.climb(below, refine=refine)
            found = search_widths(growth, self.ratios, widths, per_cache=per_cache, model=model)
        self._n_refined += growth.n_refined
        return found

    def cost(self) -> Cost:
        """What all searches so far took."""
        return Cost(
            seconds=self._losses.seconds,
            prefill_seconds=self._losses.prefill_seconds(self._prompts),
            n_prompts=len(self._prompts),
            n_trials=self._n_trials,
            n_replays=self._n_replays,
            n_refined=self._n_refined,
        )

    @cached_property
    def _prompts(self) -> tuple[Prompt, ...]:
        return Calibration.load(self._job.prompts).search

    @cached_property
    def _log(self) -> AppendLog:
        log = AppendLog(self._job.losses, alone=True)
        self._stack.callback(log.close)
        return log

    @cached_property
    def _losses(self) -> LossStore:
        from baklava.inference.continuation_loss import ContinuationLosses
        from baklava.inference.stored_losses import LossStore
        from baklava.models.load import load_model

        job = self._job
        measured = cache(lambda: ContinuationLosses.of(job, load_model(job.model)))
        return LossStore(self._log, job.model, job.eviction, measured, job.search.objective)
