"""What allocators are fitted to: the profile of a job, and searches that measure losses on its calibration prompts."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from functools import cache, cached_property
from typing import TYPE_CHECKING, Self

import numpy as np
from tqdm import tqdm

from baklava.allocation import Fitted, SearchedAllocator
from baklava.allocation.fitted import Optimum, Shares
from baklava.calibration.prompts import Calibration, Prompt
from baklava.experiment.jobs import AllocateJob
from baklava.importance.profile import Profile
from baklava.search.trace import Cost

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
        self._n_trials = self._n_replays = self._n_refined = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def search(self, allocator: SearchedAllocator) -> Fitted:
        if not self.ratios:
            return Fitted({})
        from baklava.search.mapping_search import MappingSearch  # Optuna, which most allocators do without

        settings = self._job.search
        search = MappingSearch(allocator, self.profile, self.ratios, self._prompts, self._losses, seed=settings.seed)
        fitted = search.run(settings.n_rounds)
        self._n_trials += len(fitted.trials)
        self._n_replays += sum(trial.n_prompts for trial in fitted.trials)
        return fitted

    def local_search(
        self, starts: Mapping[float, Mapping[str, Shares]], *, rounds: int, step: float, floor: float
    ) -> dict[float, Optimum]:
        if not starts:
            return {}
        from baklava.inference.continuation_loss import check_losses
        from baklava.search.local_search import MeanLosses, search_locally

        model, n_prompts = self._job.model.name, len(self._prompts)
        shape = (self.profile.n_layers, self.profile.n_kv_heads)
        name = f"refine {model} {self._job.allocator.name}"
        with tqdm(total=n_prompts * (2 + 2 * rounds), desc=name, unit="prompt") as progress:
            losses = MeanLosses(self._losses, self._prompts, shape, progress)
            [loss_full] = losses({0.0: [np.ones(shape[0] * shape[1])]})[0.0]
            check_losses(loss_full, model=model)
            searches = search_locally(starts, losses, rounds=rounds, step=step, floor=floor)
        check_losses([search.best.loss for search in searches.values()], model=model)
        self._n_refined += len(searches)
        return {
            ratio: search.optimum(loss_full=float(loss_full), n_prompts=n_prompts) for ratio, search in searches.items()
        }

    def cost(self) -> Cost | None:
        """What all searches so far took; None where there was none."""
        if not (self._n_trials or self._n_refined):
            return None
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
    def _losses(self) -> LossStore:
        from baklava.inference.continuation_loss import ContinuationLosses
        from baklava.inference.stored_losses import LossStore
        from baklava.models.load import load_model

        job = self._job
        measured = cache(lambda: ContinuationLosses.of(job, load_model(job.model)))
        return self._stack.enter_context(LossStore.at(job.losses, job.model, job.eviction, measured))
