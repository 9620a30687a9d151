"""The parameter search: which mapping from importance to shares loses least on calibration continuations."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from statistics import fmean

import numpy as np
from optuna.trial import Trial
from tqdm import tqdm

from baklava.allocation import Allocator, Fitted, budgets_of
from baklava.allocation.base import SearchPoint
from baklava.budgets import Budgets
from baklava.calibration.prompts import Calibration, Prompt
from baklava.experiment.jobs import AllocateJob
from baklava.importance.profile import Profile
from baklava.inference.continuation_loss import ContinuationLosses, LossSource, check_losses, prefill_seconds
from baklava.inference.stored_losses import LossStore, MeanLosses, as_saved
from baklava.models.files import model_identity
from baklava.models.load import load_model
from baklava.search.local_search import LocalSearch, refine
from baklava.search.study import ROUND, Study, journal
from baklava.search.trace import Cost, trace
from baklava.system.fingerprint import fingerprint

# Part of what a journal's studies are known by: raise it with a change after which losses or trials may be others.
VERSION = 2

# Parts of the prompts after which trials drop out, and the part of what got as far that a trial must be among: the half
# after a quarter of the prompts, which tells the bad ones; then the best quarter, by when ranks hardly change any more.
PRUNING_STAGES = {0.25: 0.5, 0.5: 0.25, 1.0: 1.0}
SEE_ALL = 2  # the first trials, uniform and the mapping as configured, see every prompt
REFINE_ABOVE = 0.005  # nats per token beyond the full cache's loss from which on a searched mapping is refined
STEP = 0.05  # share that a KV cache gains or gives in the first round of it
NEIGHBOURS = 2  # other ratios, the nearest ones, whose best mapping is tried


@dataclass
class _Running:
    """A trial under way: its budgets, and its losses on the prompts that it has seen."""

    trial: Trial
    budgets: Budgets
    losses: list[float] = field(default_factory=list)

    @property
    def loss(self) -> float:
        return fmean(self.losses)


class Search:
    """Rounds of trials at every ratio of one method.

    All ratios share the passes over the prompts. A trial drops out after a stage where it is not among the better part
    of those that got as far: of its round, and of earlier ones that saw every prompt. (Optuna's own median pruner
    compares the best that a trial ever reported; as a mean over ever more prompts moves up and down with the prompts,
    that says little.) Uniform and the configured mapping see every prompt, and the winner is the lowest loss among
    those that did, so it is never worse than either on the calibration prompts.
    """

    def __init__(
        self, allocator: Allocator, profile: Profile, studies: Mapping[float, Study], prompts: Sequence[Prompt]
    ):
        self._allocator = allocator
        self._profile = profile
        self._studies = studies
        self._prompts = prompts

    def round(self, replay: LossSource, progress: tqdm) -> None:
        """Ask every study for new trials and run them."""
        running = {ratio: self._asked(ratio) for ratio in self._studies}
        seen = 0
        for stop, part in _stops(len(self._prompts)).items():
            if not any(running.values()):
                return  # earlier trials are better than all of this round's
            for prompt in self._prompts[seen:stop]:
                rows = [one for some in running.values() for one in some]
                losses = replay.losses(prompt, [one.budgets for one in rows])
                for one, loss in zip(rows, losses, strict=True):
                    one.losses.append(float(loss) if np.isfinite(loss) else np.inf)
            seen = stop
            for ratio, some in running.items():
                running[ratio] = self._going_on(ratio, some, stop, part)
                progress.update(len(some) - len(running[ratio]))
            self._show(progress)

    def loss_full(self, replay: LossSource) -> float:
        """Of the full cache."""
        full = Budgets.uniform(n_layers=self._profile.n_layers, n_kv_heads=self._profile.n_kv_heads, ratio=0.0)
        return fmean(float(replay.losses(prompt, [full])[0]) for prompt in self._prompts)

    def budgets(self, ratio: float, point: SearchPoint) -> Budgets:
        return budgets_of(self._allocator.at(point), self._profile, ratio)

    def _asked(self, ratio: float) -> list[_Running]:
        """As many trials as a round has: what should be tried first, then what the sampler proposes."""
        study = self._studies[ratio]
        points = iter(list(self._wanted(ratio)))
        trials = [study.ask(next(points, None)) for _ in range(ROUND)]
        return [_Running(trial, self.budgets(ratio, trial.params)) for trial in trials]

    def _wanted(self, ratio: float) -> Iterator[SearchPoint]:
        """The allocator's first points, then the best of the nearest ratios, unless they were tried."""
        tried = [one.params for one in self._studies[ratio].trials]
        points = list(self._allocator.starts(self._profile))
        others = sorted((other for other in self._studies if other != ratio), key=lambda other: abs(other - ratio))
        points += [self._studies[other].best.params for other in others[:NEIGHBOURS] if self._studies[other].complete]
        for point in points:
            if point not in tried:
                tried.append(point)
                yield point

    def _going_on(self, ratio: float, running: list[_Running], stop: int, part: float) -> list[_Running]:
        """Those that see more prompts after `stop` of them, being among the better `part`; the others are finished."""
        study = self._studies[ratio]
        for one in running:
            one.trial.report(one.loss, stop)
        known = [one.intermediate_values[stop] for one in study.complete] + [one.loss for one in running]
        enough = float(np.quantile(known, part, method="lower"))
        going = []
        for one in running:
            if stop == len(self._prompts):
                study.finish(one.trial)
            elif one.loss > enough and one.trial.number >= SEE_ALL:
                study.finish(one.trial, pruned=True)
            else:
                going.append(one)
        return going

    def _show(self, progress: tqdm) -> None:
        best = {ratio: study.best.value for ratio, study in self._studies.items() if study.complete}
        if best:
            progress.set_postfix_str(
                "best loss " + ", ".join(f"{loss:.3f} at {ratio:g}" for ratio, loss in best.items())
            )


def _stops(n_prompts: int) -> dict[int, float]:
    """Numbers of prompts after which trials drop out, and the better part that goes on."""
    return {max(1, round(seen * n_prompts)): part for seen, part in PRUNING_STAGES.items()}


def searched_budgets(job: AllocateJob, allocator: Allocator, profile: Profile) -> Fitted:
    """The best mapping for every ratio of the job, and what was tried.

    Finished rounds are kept in a journal under a fingerprint of all that determines them: a search that was killed goes
    on after the last one and finds the same.
    """
    calibration = Calibration.load(job.prompts)
    if not job.budgets:
        return Fitted({}, trace(job, {}))
    name = _identity(job, allocator, profile, calibration)
    with journal(job.study) as storage:
        space = allocator.space(profile)
        studies = {
            ratio: Study(storage, f"{name} r={ratio:g}", space, seed=fingerprint(job.search.seed, ratio))
            for ratio in job.budgets
        }
        search = Search(allocator, profile, studies, calibration.search)
        replay = cache(lambda: ContinuationLosses.of(job, load_model(job.model)))
        _run(job, search, studies, calibration.search, replay)
    budgets = {ratio: _winner(job, search, ratio, study) for ratio, study in studies.items()}
    rounds = allocator.refinement_rounds
    lossy = {ratio: one for ratio, one in budgets.items() if rounds and _excess(one) > REFINE_ABOVE}
    refined, seconds = _refined(job, lossy, replay, calibration.search, rounds) if lossy else ({}, 0.0)
    cost = Cost.of(studies.values(), n_prompts=len(calibration.search), n_refined=len(lossy), refined_in=seconds)
    cost.save(job.cost)
    tqdm.write(f"search {job.model.name} {job.allocator.name}/{job.eviction.name}: {cost}")
    return Fitted(budgets | refined, trace(job, studies))


def _refined(
    job: AllocateJob,
    lossy: Mapping[float, Budgets],
    replay: Callable[[], ContinuationLosses],
    prompts: Sequence[Prompt],
    rounds: int,
) -> tuple[dict[float, Budgets], float]:
    """Budgets that lose less on the search prompts, or the same where no move pays, and the seconds that it took."""
    shape = next(iter(lossy.values())).shape
    name = f"refine {job.model.name} {job.allocator.name}"
    with (
        tqdm(total=len(prompts) * (1 + 2 * rounds), desc=name, unit="prompt") as progress,
        LossStore.at(job.losses, job.model, job.eviction, replay) as kept,
    ):
        losses = MeanLosses(kept, prompts, shape, progress)
        starts = {ratio: {"searched": one.shares.ravel()} for ratio, one in lossy.items()}
        refined = refine(starts, losses, rounds=rounds, step=STEP, floor=0.0)
    return {ratio: _moved(lossy[ratio], one) for ratio, one in refined.items()}, kept.seconds


def _excess(budgets: Budgets) -> float:
    """Nats per token that they lose beyond the full cache."""
    return budgets.provenance["loss"] - budgets.provenance["loss_full"]


def _moved(budgets: Budgets, refined: LocalSearch) -> Budgets:
    if refined.best is refined.start:
        return budgets
    return Budgets.from_shares(
        refined.best.shares.reshape(budgets.shape),
        ratio=budgets.ratio,
        model=budgets.model,
        allocator=budgets.allocator,
        parameters={**budgets.parameters, "refined": refined.best.move},
        provenance={**budgets.provenance, "loss": refined.best.loss, "loss_searched": refined.start.loss},
    )


def _identity(job: AllocateJob, allocator: Allocator, profile: Profile, calibration: Calibration) -> str:
    """Of all that losses and trials depend on, but the number of rounds: more of them go on from fewer."""
    policy = job.eviction.build()
    parameters = {name: value for name, value in asdict(allocator).items() if name != "refine"}
    return fingerprint(
        VERSION,
        model_identity(job.model),
        profile.fingerprint,
        calibration.fingerprint,
        [allocator.family, parameters],
        [policy.family, asdict(policy)],
        list(job.budgets),
        job.search.seed,
    )


def _run(
    job: AllocateJob,
    search: Search,
    studies: Mapping[float, Study],
    prompts: Sequence[Prompt],
    replay: Callable[[], ContinuationLosses],
) -> None:
    """The rounds that the journal does not hold yet; the model is loaded only if there are any."""
    n_rounds = job.search.n_rounds
    done = min(n_rounds, *(study.n_rounds_saved for study in studies.values()))
    for study in studies.values():
        study.resume(done)
    if done == n_rounds:
        return
    n_trials = ROUND * len(studies)
    name = f"search {job.model.name} {job.allocator.name}"
    with tqdm(total=n_rounds * n_trials, initial=done * n_trials, desc=name, unit="trial") as progress:
        for number in range(done, n_rounds):
            started = time.perf_counter()
            facts = {"loss_full": _loss_full(job, search, replay())} if number == 0 else {}
            search.round(replay(), progress)
            facts["seconds"] = time.perf_counter() - started
            if number == 0:
                facts["prefill_seconds"] = prefill_seconds(replay().loaded, prompts)
            for study in studies.values():
                study.save(facts)


def _loss_full(job: AllocateJob, search: Search, replay: ContinuationLosses) -> float:
    loss = search.loss_full(replay)
    check_losses(loss, model=job.model.name)
    return loss


def _winner(job: AllocateJob, search: Search, ratio: float, study: Study) -> Budgets:
    best, uniform = study.best, study.trials[0]
    assert best.value is not None and uniform.value is not None  # both saw every prompt
    check_losses(best.value, model=job.model.name)
    found = search.budgets(ratio, best.params)
    losses = {"loss": best.value, "loss_uniform": as_saved(uniform.value), "loss_full": study.facts[0]["loss_full"]}
    return Budgets.from_shares(
        found.shares,
        ratio=found.ratio,
        model=found.model,
        allocator=job.allocator.name,
        parameters={"mapping": found.allocator, **found.parameters},
        provenance={**found.provenance, **losses, "trial": best.number, "n_trials": len(study.trials)},
    )
