"""Budgets of an allocator for the ratios of a job, and how they were found."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from baklava.allocation.base import Allocator
from baklava.budgets import Budgets

if TYPE_CHECKING:
    import pandas as pd

    from baklava.importance.profile import Profile


@dataclass(frozen=True)
class Fitted:
    """Budgets per ratio, and the trace of what was tried for them, one row per trial."""

    budgets: dict[float, Budgets]
    trace: pd.DataFrame


def budgets_of(allocator: Allocator, profile: Profile, ratio: float) -> Budgets:
    """What an allocator gives at a ratio, with its parameters and where they come from."""
    parameters = {key: value for key, value in asdict(allocator).items() if key not in ("name", "search")}
    provenance = {"calibration": profile.meta.get("calibration"), "profiled": profile.meta.get("path")}
    return Budgets.from_shares(
        allocator.shares(profile, ratio),
        ratio=ratio,
        model=profile.model,
        allocator=allocator.name,
        parameters=parameters,
        provenance=provenance,
    )
