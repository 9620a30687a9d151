"""Bootstrap confidence intervals of means, seeded by what they describe."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

_BLOCK = 4_000_000  # random indices drawn at a time, to bound the memory


class Interval(NamedTuple):
    """An estimate and the limits of its confidence interval."""

    estimate: float
    low: float
    high: float


@dataclass(frozen=True)
class Bootstrap:
    """Percentile bootstrap of a mean.

    The random stream depends on `seed` and on the identity of what is estimated, never on what else is estimated, so
    adding a cell to an experiment changes no other row. Samples that all agree give an interval of width 0, however few
    they are: read it together with their number.
    """

    n_bootstrap: int = 2000
    confidence: float = 0.95
    seed: int = 0

    def mean(self, values: ArrayLike, *identity: object, clusters: ArrayLike | None = None) -> Interval:
        """Interval of the mean of `values` `[n]`."""
        return self.mean_of_means([values], *identity, clusters=None if clusters is None else [clusters])

    def mean_of_means(
        self, groups: Sequence[ArrayLike], *identity: object, clusters: Sequence[ArrayLike] | None = None
    ) -> Interval:
        """Interval of the unweighted mean over groups of each group's mean; samples are redrawn within each group.

        To compare two cells, pass the differences of their paired samples. Groups may differ in size. Samples that
        depend on each other, such as questions about one context, have a cluster `[n]` in common, and are redrawn
        together: as many questions about few contexts say less than as many contexts.
        """
        arrays = [np.asarray(group, dtype=np.float64) for group in groups]
        if not arrays or any(array.ndim != 1 or array.size == 0 for array in arrays):
            raise ValueError("a bootstrap needs one or more groups of one or more values each")
        random = np.random.default_rng(_entropy(self.seed, identity))
        of_group = [None] * len(arrays) if clusters is None else list(clusters)
        means = np.mean(
            [self._resampled_means(array, own, random) for array, own in zip(arrays, of_group, strict=True)], axis=0
        )
        tail = 50.0 * (1.0 - self.confidence)
        low, high = np.percentile(means, [tail, 100.0 - tail])
        return Interval(float(np.mean([array.mean() for array in arrays])), float(low), float(high))

    def _resampled_means(
        self, values: NDArray[np.float64], clusters: ArrayLike | None, random: np.random.Generator
    ) -> NDArray[np.float64]:
        """Means `[n_bootstrap]` of clusters of `values` `[n]` drawn with replacement; without any, each is its own."""
        sums, counts = values, np.ones(values.size)
        if clusters is not None:
            names, cluster = np.unique(np.asarray(clusters), return_inverse=True)
            if len(names) < values.size:
                sums, counts = (np.bincount(cluster, weights).astype(np.float64) for weights in (values, counts))
        n = sums.size
        block = max(1, _BLOCK // n)
        sizes = [min(block, self.n_bootstrap - start) for start in range(0, self.n_bootstrap, block)]
        drawn = (random.integers(n, size=(size, n)) for size in sizes)
        return np.concatenate([sums[index].sum(1) / counts[index].sum(1) for index in drawn])


def _entropy(seed: int, identity: tuple[object, ...]) -> list[int]:
    """Seed words for a generator, the same on every machine (unlike `hash`)."""
    text = json.dumps([seed, *map(str, identity)])
    return np.frombuffer(hashlib.sha256(text.encode()).digest(), dtype="<u4").tolist()
