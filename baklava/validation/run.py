"""`baklava validate`: how far a profile can be relied on, and how well each estimator ranks the KV caches."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from baklava.budgets import Budgets
from baklava.calibration.prompts import Calibration
from baklava.calibration.run import draw_prompts
from baklava.experiment.components import CalibrationConfig
from baklava.experiment.jobs import ValidateJob
from baklava.importance.loss_curves import LossCurves
from baklava.importance.profile import Profile
from baklava.inference.continuation_loss import ContinuationLosses
from baklava.models.load import LoadedModel, load_model
from baklava.profiling.run import profile_prompts
from baklava.system.parquet import write_parquet_rows
from baklava.validation import consistency, policies, ranking, regret
from baklava.validation.plots import draw_validation

MEASURED = "measured"  # the ranking by measured losses, beside the estimators


def validate(job: ValidateJob) -> None:
    """Write consistency, ranking quality and regret of one model, and draw them."""
    loaded, profile = load_model(job.model), Profile.load(job.profile)
    curves = {
        name: LossCurves.load(path, profile, job.evictions[name].model_dump(mode="json"))
        for name, path in job.curves.items()
    }
    top = job.settings.top
    rankings = [row for losses in curves.values() for row in ranking.compare_with_measured(profile, losses, top=top)]
    write_parquet_rows(job.ranking, rankings, ranking.COLUMNS, schema=ranking.SCHEMA)
    between = policies.compare_policies(curves, _budgets_by_policy(job), model=profile.model, top=top)
    write_parquet_rows(job.policies, between, policies.COLUMNS, schema=policies.SCHEMA)
    agreements = _check_consistency(job, loaded, profile)
    write_parquet_rows(job.consistency, agreements, consistency.COLUMNS, schema=consistency.SCHEMA)
    regrets = _measure_regret(job, loaded, profile, curves)
    write_parquet_rows(job.regret, regrets, regret.COLUMNS, schema=regret.SCHEMA)
    draw_validation(job)


def _check_consistency(job: ValidateJob, loaded: LoadedModel, profile: Profile) -> Iterator[dict[str, Any]]:
    """Compare prompts of the profile, then sets at the calibration's length, then lengths of the calibration's set.

    Every set has a seed of its own, so that two sets share no prompt of the same task.
    """
    top = job.settings.top

    def make_profile(settings: CalibrationConfig, **changed: int) -> Profile:
        settings = settings.model_copy(update=changed)
        prompts = list(draw_prompts(settings, job.settings.n_prompts, loaded.tokenizer, loaded))
        return profile_prompts(loaded, prompts, job.profiling)

    sets = job.settings.calibrations
    length = job.calibration.length
    by_set = {
        name: make_profile(settings, length=length, seed=settings.seed + i)
        for i, (name, settings) in enumerate(sets.items())
    }
    by_length = {f"{length:,}": make_profile(job.calibration, length=length) for length in job.settings.lengths}
    yield from consistency.compare_prompts(profile, top=top)
    yield from consistency.compare_profiles(by_set, between="sets", top=top)
    yield from consistency.compare_profiles(by_length, between="lengths", top=top)


def _budgets_by_policy(job: ValidateJob) -> dict[str, dict[str, Budgets]]:
    """The budgets of each allocator at each ratio, by eviction policy."""
    budgets: dict[str, dict[str, Budgets]] = defaultdict(dict)
    for cell in job.cells:
        budgets[f"{cell.allocator}, r = {cell.ratio:g}"][cell.eviction] = Budgets.load(cell.path)
    return budgets


def _measure_regret(
    job: ValidateJob, loaded: LoadedModel, profile: Profile, curves: dict[str, LossCurves]
) -> Iterator[dict[str, Any]]:
    prompts = Calibration.load(job.prompts).search
    estimators = {name: profile.kv_importance(name) for name in profile.head_importance}
    for eviction, policy in job.evictions.items():
        methods: dict[float, dict[str, Budgets]] = defaultdict(dict)
        for cell in job.cells:
            if cell.eviction == eviction:
                methods[cell.ratio][cell.allocator] = Budgets.load(cell.path)
        yield from regret.measure_regret(
            {**estimators, MEASURED: curves[eviction].importance()},
            methods,
            ContinuationLosses(loaded, policy.build(), batch_rows=job.batch_rows),
            prompts,
            model=profile.model,
            eviction=eviction,
        )
