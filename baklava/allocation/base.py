"""What an allocator is: it turns a profile and a ratio into shares (how MUCH each KV cache keeps)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, Field

from baklava.errors import UserError
from baklava.importance import ESTIMATORS

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

    from baklava.importance.profile import Profile


def _known_estimator(name: str) -> str:
    if name not in ESTIMATORS:
        raise UserError(f"unknown estimator {name!r}; known: {', '.join(ESTIMATORS)}")
    return name


# Kinds of parameters that several allocators have.
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Estimator = Annotated[str, AfterValidator(_known_estimator)]
Pool = Literal["mean", "max"]

SearchPoint = dict[str, Any]  # a value for every parameter of a search space


@dataclass(frozen=True, kw_only=True)
class Allocator:
    """Interface of an allocator; the fields of a subclass are its parameters. Unknown parameters are refused."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    family: ClassVar[str]
    needs_curves: ClassVar[bool] = False  # where true, `shares` finds `profile.curves`

    name: str

    def shares(self, profile: Profile, ratio: float) -> NDArray[np.float64]:
        """Shares `[n_layers, n_kv_heads]` in [0, 1] with mean `1 - ratio`."""
        raise NotImplementedError

    @property
    def searches(self) -> bool:
        """Whether the calibration prompts pick its parameters; then it has `space`, `starts` and `at`."""
        return False

    @property
    def refinement_rounds(self) -> int:
        """Rounds of the joint refinement that follow a search, at ratios where what it found still loses."""
        return 0

    def space(self, profile: Profile) -> dict[str, BaseDistribution]:
        """What the search may change, with ranges; continuous on scales on which all parts deserve a try."""
        raise NotImplementedError

    def starts(self, profile: Profile) -> Sequence[SearchPoint]:
        """Points to try first: the uniform allocation, this allocator as it is, then any others."""
        raise NotImplementedError

    def at(self, point: SearchPoint) -> Allocator:
        """The allocator with the parameters of a point of the space."""
        raise NotImplementedError

    def check(self) -> None:
        """Look, before the first job and without reading much, whether what the shares are made of is there.

        Raises `UserError` that says what to provide.
        """


def kv_importance(profile: Profile, estimator: str, *, pool: str, allocator: str) -> NDArray[np.float64]:
    """Importance per KV cache `[L, Hkv]`. Raises `UserError` where the profile holds no such estimator."""
    if estimator not in profile.head_importance:
        known = ", ".join(profile.head_importance)
        raise UserError(f"allocator {allocator}: the profile holds no estimator {estimator!r}; it has {known}")
    return profile.kv_importance(estimator, pool=pool)
