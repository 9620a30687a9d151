"""Fake profiles with what an allocator reads of them, and random ones for property-based tests."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from baklava.importance import ESTIMATORS


@dataclass(frozen=True)
class FakeCurves:
    """What an allocator reads of loss curves: rises `[K, L, Hkv]` in proportion to importance, not monotone."""

    head: NDArray[np.float64]
    levels: tuple[float, ...] = (0.0, 0.1, 0.2, 0.5)

    def mean(self) -> NDArray[np.float64]:
        return np.array([1.0, 0.4, 0.6, 0.1])[:, None, None] * self.head


@dataclass
class FakeProfile:
    """What an allocator reads of a profile."""

    head: NDArray[np.float64]  # [L, Hkv]
    layer_importance: NDArray[np.float64]  # [P, L]
    estimators: tuple[str, ...] = tuple(ESTIMATORS)
    pooled: list[str] = field(default_factory=list)
    model: str = "fake"
    meta: dict[str, str] = field(default_factory=dict)

    @property
    def n_layers(self) -> int:
        return self.head.shape[0]

    @property
    def n_kv_heads(self) -> int:
        return self.head.shape[1]

    @property
    def head_importance(self) -> dict[str, NDArray[np.float64]]:
        return {name: np.stack([self.head]) for name in self.estimators}

    @property
    def curves(self) -> FakeCurves:
        return FakeCurves(self.head)

    def kv_importance(self, estimator: str, *, pool: str = "mean") -> NDArray[np.float64]:
        self.pooled.append(pool)
        return self.head * (1 + self.estimators.index(estimator))


def flat_profile(importance: list[float]) -> FakeProfile:
    """Make a profile of one layer, so that only head importance counts."""
    return FakeProfile(np.array([importance]), np.ones((1, 1)))


IMPORTANCE = st.floats(0, 10) | st.sampled_from([0.0, 1.0, 1e-300, 1e-9])


def profiles(*, distinct: bool = False) -> st.SearchStrategy[FakeProfile]:
    """Draw profiles of any small shape; with `distinct`, no two KV caches are equally important."""
    return st.tuples(st.integers(1, 6), st.integers(1, 5)).flatmap(
        lambda shape: st.builds(
            FakeProfile,
            arrays(np.float64, shape, elements=st.floats(0, 10) if distinct else IMPORTANCE, unique=distinct),
            arrays(np.float64, (2, shape[0]), elements=IMPORTANCE),
        )
    )


PROFILES = profiles()
RATIOS = st.floats(0, 1, exclude_max=True) | st.sampled_from([0.0, 0.5, 0.7, 0.9])
