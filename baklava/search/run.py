"""`baklava allocate`: budgets of one method at every ratio, computed from the profile or found by a search."""

from __future__ import annotations

from dataclasses import replace

from tqdm import tqdm

from baklava.errors import UserError
from baklava.experiment.jobs import AllocateJob
from baklava.importance.loss_curves import LossCurves
from baklava.importance.profile import Profile
from baklava.models.files import model_fingerprint
from baklava.search.card import write_card
from baklava.search.context import SearchContext
from baklava.search.trace import write_trace


def allocate(job: AllocateJob) -> None:
    """Write the budgets of one method at every ratio, and the trace of how they were found (empty for most)."""
    profile = _load_profile(job)
    with SearchContext(job, profile) as context:
        fitted, cost = context.fit(job.allocator.build())
        if cost is not None:
            cost.save(job.cost)
            tqdm.write(f"search {job.model.name} {job.allocator.name}/{job.eviction.name}: {cost}")
    for ratio, path in job.budgets.items():
        fitted.budgets[ratio].save(path)
    if job.allocator.build().searches and job.budgets:
        write_card(job, profile, fitted.budgets)
    write_trace(job, fitted.trials)


def _load_profile(job: AllocateJob) -> Profile:
    """The profile, with curves where the allocator needs them. Raises `UserError` where the model has changed since."""
    profile = Profile.load(job.profile)
    measured = profile.meta.get("content")
    if measured is not None and model_fingerprint(job.model) not in (measured, None):
        raise UserError(
            f"{job.profile}: measured on other files than {job.model.path} holds now; remove the profile and make it "
            "again, or restore the model"
        )
    if job.curves is None:
        return profile
    return replace(profile, curves=LossCurves.load(job.curves, profile, job.eviction.model_dump(mode="json")))
