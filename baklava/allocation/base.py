"""What an allocator is: it turns a profile and a ratio into shares (how MUCH each KV cache keeps)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, Field

from baklava.allocation.fitted import Fitted, Grown, Optimum, Shares
from baklava.budgets import Budgets
from baklava.budgets.bits import EXACT, WIDTHS, EntrySize, parse_bits
from baklava.errors import UserError
from baklava.importance import MODULES

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

    from baklava.importance.profile import Profile


def _known_estimator(name: str) -> str:
    if name not in MODULES:
        raise UserError(f"unknown estimator {name!r}; known: {', '.join(MODULES)}")
    return name


# Kinds of parameters that several allocators have.
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Estimator = Annotated[str, AfterValidator(_known_estimator)]
Pool = Literal["mean", "max"]
Granularity = Annotated[str, Field(pattern=r"^(head|layer|group:[1-9]\d{0,4})$")]


def _known_width(bits: Any) -> Any:
    widths = bits if isinstance(bits, tuple) else (bits,)
    if not (set(widths) <= set(WIDTHS) and len(widths) in (1, 2)):
        raise ValueError("bits must be 16, 8, 4 or 2, or a pair of them for keys and values")
    return bits


Width = Annotated[int | tuple[int, int], AfterValidator(_known_width)]

SearchPoint = dict[str, Any]  # a value for every parameter of a search space


class FitContext(Protocol):
    """What an allocator is fitted to: a profile, ratios, and searches that measure losses on calibration prompts."""

    @property
    def profile(self) -> Profile: ...

    @property
    def ratios(self) -> Sequence[float]: ...

    def search(self, allocator: SearchedAllocator) -> Fitted:
        """The parameters that lose least at each ratio. Raises `UserError` where losses are not finite."""
        ...

    def grow(
        self, *, refine: int, group: int = 1, widths: Sequence[Width] = (EXACT,), per_cache: bool = False
    ) -> dict[float, Grown]:
        """Shares that grow along their measured influence, nested from ratio to ratio; raises as `search` does.

        `refine` is the number of rounds in which the lowest rung is shrunk and grown anew; `group` neighbouring KV
        heads share a budget. Of several `widths`, all KV caches of a ratio get the one that loses least, or with
        `per_cache` each its own where that loses less.
        """
        ...

    def local_search(
        self,
        starts: Mapping[float, Mapping[str, Shares]],
        *,
        rounds: int,
        step: float,
        floor: float,
        group: int = 1,
    ) -> dict[float, Optimum]:
        """What loses least around the best of each ratio's named starts. Raises `UserError` as `search` does.

        Shares in starts and results are one per group of `group` neighbouring KV heads.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Allocator:
    """Interface of an allocator; the fields of a subclass are its parameters. Unknown parameters are refused.

    Every allocator takes two constraints of paged storage. `granularity`: KV caches have budgets of their own ("head"),
    or the KV heads of a layer share them, all ("layer") or so many neighbours ("group:4"). `page`: budgets are whole
    blocks of so many entries. `bits` quantises all KV caches, to one width or to one for keys and one for values; a
    ratio is then the fraction of bytes that is removed.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    family: ClassVar[str]
    needs_curves: ClassVar[bool] = False  # where true, `shares` finds `profile.curves`

    name: str
    granularity: Granularity = "head"
    page: Annotated[int, Field(ge=1)] = 1
    bits: Width = EXACT

    def __post_init__(self) -> None:
        if self.bits != EXACT and (self.granularity not in ("head", "group:1") or self.page != 1):
            key, value = ("page", self.page) if self.page != 1 else ("granularity", self.granularity)
            raise UserError(
                f"allocator {self.name}: {key}: {value} does not go with bits: {self.bits}, whose groups are pages of "
                f"their own; leave one of them out"
            )

    def group(self, n_kv_heads: int) -> int:
        """How many KV heads share a budget. Raises `UserError` where a layer's heads cannot be grouped so."""
        size = {"head": 1, "layer": n_kv_heads}.get(self.granularity) or int(self.granularity.removeprefix("group:"))
        if n_kv_heads % size:
            raise UserError(
                f"allocator {self.name}: granularity: a layer's {n_kv_heads} KV heads make no groups of {size}"
            )
        return size

    def parameters(self, *, without: Sequence[str] = ("name",)) -> dict[str, Any]:
        """The fields as plain values; constraints that constrain nothing are left out."""
        free = {"granularity": "head", "page": 1, "bits": EXACT}
        return {
            key: value for key, value in asdict(self).items() if key not in without and (key, value) not in free.items()
        }

    @property
    def quantises(self) -> str | None:
        """The parameter by which KV caches may be quantised, if they may."""
        return "bits" if parse_bits(self.bits, (1, 1)).min() < EXACT else None

    @property
    def searches(self) -> bool:
        """Whether `fit` measures losses on the calibration prompts, and so leaves trials."""
        return False

    @property
    def searches_mappings(self) -> bool:
        """Whether `fit` picks the parameters of a mapping, so that its trials have them."""
        return False

    def shares(self, profile: Profile, ratio: float) -> NDArray[np.float64]:
        """Shares `[n_layers, n_kv_heads]` in [0, 1] with mean `1 - ratio`."""
        raise NotImplementedError

    def check_exact(self) -> None:
        """Raises `UserError` where this allocator is asked for bits that its search does not know."""
        if self.bits != EXACT:
            raise UserError(f"allocator {self.name}: bits: its search knows 16 alone; quantise with uniform or growth")

    def fit(self, context: FitContext) -> Fitted:
        """Budgets for every ratio of the context; by default those of `shares`."""
        return Fitted({ratio: budgets_of(self, context.profile, ratio) for ratio in context.ratios})

    def check(self) -> None:
        """Look, before the first job and without reading much, whether what the shares are made of is there.

        Raises `UserError` that says what to provide.
        """


class SearchedAllocator(Allocator):
    """An allocator whose parameters `FitContext.search` can pick."""

    def space(self, profile: Profile) -> dict[str, BaseDistribution]:
        """What the search may change, with ranges, on scales on which equal steps matter equally."""
        raise NotImplementedError

    def starts(self, profile: Profile) -> Sequence[SearchPoint]:
        """Points to try first: the uniform allocation, this allocator as it is, then any others."""
        raise NotImplementedError

    def at(self, point: SearchPoint) -> Allocator:
        """The allocator with the parameters of a point of the space."""
        raise NotImplementedError


def budgets_of(allocator: Allocator, profile: Profile, ratio: float) -> Budgets:
    """What an allocator's `shares` give at a ratio, with its parameters and where they come from."""
    provenance = {"calibration": profile.meta.get("calibration"), "profiled": profile.meta.get("path")}
    shape, group = (profile.n_layers, profile.n_kv_heads), allocator.group(profile.n_kv_heads)
    removed = entries_removed(ratio, allocator.bits)
    shares = allocator.shares(profile, removed) if removed or not ratio else np.ones(shape)
    return Budgets.from_shares(
        np.repeat(mean_of_groups(shares, group), group).reshape(shape),
        ratio=ratio,
        model=profile.model,
        allocator=allocator.name,
        parameters=allocator.parameters(without=("name", "search")),
        provenance=provenance,
        group=group,
        page=allocator.page,
        bits=None if allocator.bits == EXACT else allocator.bits,
    )


def entries_removed(ratio: float, bits: int | tuple[int, int]) -> float:
    """The fraction of entries to remove, so that with these bits the fraction `ratio` of bytes is; 0: none need be."""
    if bits == EXACT:
        return ratio
    return max(0.0, 1.0 - (1.0 - ratio) / float(EntrySize().relative(parse_bits(bits, (1, 1))[0, 0])))


def mean_of_groups(shares: NDArray[np.float64], group: int) -> Shares:
    """Shares `[L, Hkv]` or `[N]` as one share per group of neighbouring KV heads, `[N / group]`: their mean."""
    return shares.reshape(-1, group).mean(1) if group > 1 else shares.ravel()


def kv_importance(profile: Profile, estimator: str, *, pool: str, allocator: str) -> NDArray[np.float64]:
    """Importance per KV cache `[L, Hkv]`. Raises `UserError` where the profile holds no such estimator."""
    if estimator not in profile.head_importance:
        known = ", ".join(profile.head_importance)
        raise UserError(f"allocator {allocator}: the profile holds no estimator {estimator!r}; it has {known}")
    return profile.kv_importance(estimator, pool=pool)
