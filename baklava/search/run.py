"""`baklava allocate`: budgets of one method at every ratio, computed from the profile or found by a search."""

from __future__ import annotations

from dataclasses import replace

import pyarrow as pa

from baklava.allocation import Allocator, BaklavaMeasured, Fitted, budgets_of
from baklava.errors import UserError
from baklava.experiment.jobs import AllocateJob
from baklava.importance.loss_curves import LossCurves
from baklava.importance.profile import Profile
from baklava.models.files import model_fingerprint
from baklava.search.trace import SCHEMA, trace
from baklava.system.parquet import write_parquet


def allocate(job: AllocateJob) -> None:
    """Write the budgets of one method at every ratio, and the trace of how they were found (empty for most)."""
    profile = Profile.load(job.profile)
    measured = profile.meta.get("content")
    if measured is not None and model_fingerprint(job.model) not in (measured, None):
        raise UserError(
            f"{job.profile}: measured on other files than {job.model.path} holds now; remove the profile and make it "
            "again, or restore the model"
        )
    if job.curves is not None:
        profile = replace(profile, curves=LossCurves.load(job.curves, profile, job.eviction.model_dump(mode="json")))
    fitted = _fitted(job, job.allocator.build(), profile)
    for ratio, path in job.budgets.items():
        fitted.budgets[ratio].save(path)
    write_parquet(job.trace, pa.Table.from_pandas(fitted.trace, preserve_index=False), schema=SCHEMA)


def _fitted(job: AllocateJob, allocator: Allocator, profile: Profile) -> Fitted:
    if isinstance(allocator, BaklavaMeasured) and allocator.rounds and job.budgets:
        from baklava.search.measured import joint_budgets

        return joint_budgets(job, allocator, profile)
    if allocator.searches:
        from baklava.search.mapping import searched_budgets

        return searched_budgets(job, allocator, profile)
    return Fitted({ratio: budgets_of(allocator, profile, ratio) for ratio in job.budgets}, trace(job, {}))
