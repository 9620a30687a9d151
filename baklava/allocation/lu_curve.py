"""Shares from a curve of prune ratios that was made elsewhere, as LU-KV saves it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from baklava.allocation.base import Allocator
from baklava.errors import UserError, first_line
from baklava.system.files import expand_home

if TYPE_CHECKING:
    from baklava.importance.profile import Profile

TARGETS = 99  # 1 %, 2 %, ..., 99 %


@dataclass(frozen=True, kw_only=True)
class LuCurve(Allocator):
    """Shares from a `.npy` file `[99, n_layers, n_kv_heads]`: what to remove of each KV cache at 1 %, ..., 99 %.

    There is no default curve: one belongs to a model and to an eviction policy. Those that the authors publish were
    made with expected attention, `epsilon` 0.02, 4 sinks and the last entry kept (kvpress 0.5.5's `LUKVPress`); compare
    with `eviction=expected_attention evictions.expected_attention.epsilon=0.02`.

    Shares are interpolated linearly between two targets, and to 0 and 100 % at the ends. Where the mean of the curve
    misses its target, all shares (or all removed fractions, where too little is kept) are scaled by the same factor.
    The file may give a cache more when the total shrinks, so unlike the other allocators this one may, too.
    """

    family: ClassVar[str] = "lu_curve"

    curve: str | None = None

    def check(self) -> None:
        self._path()

    def _path(self) -> Path:
        if self.curve is None:
            raise UserError(
                f"allocator {self.name}: curve: none given; set allocators.{self.name}.curve to a .npy file "
                f"[{TARGETS}, n_layers, n_kv_heads] of prune ratios"
            )
        path = expand_home(self.curve)
        if not path.is_file():
            raise UserError(f"allocator {self.name}: curve: no such file: {self.curve}")
        return path

    def shares(self, profile: Profile, ratio: float) -> NDArray[np.float64]:
        removed = read_curve(self._path())
        expected = (TARGETS, profile.n_layers, profile.n_kv_heads)
        if removed.shape != expected:
            raise UserError(
                f"allocator {self.name}: {self.curve} has shape {list(removed.shape)}, the profile asks for "
                f"{list(expected)}: targets, layers, KV heads"
            )
        return curve_shares(removed, ratio, source=str(self.curve))


def curve_shares(removed: NDArray[np.float64], ratio: float, *, source: str) -> NDArray[np.float64]:
    """Shares `[L, Hkv]` from prune ratios `[99, L, Hkv]` at 1 %, ..., 99 %. Raises `UserError` for another shape."""
    if removed.ndim != 3 or len(removed) != TARGETS or removed.size == 0:
        raise UserError(f"{source}: expected [{TARGETS}, layers, KV heads], got shape {list(removed.shape)}")
    ends = np.zeros((1, *removed.shape[1:])), np.ones((1, *removed.shape[1:]))
    targets = np.concatenate([ends[0], removed, ends[1]])  # at 0, 1, ..., 100 %
    index = min(int(100.0 * ratio), TARGETS)
    weight = 100.0 * ratio - index
    shares = 1.0 - ((1.0 - weight) * targets[index] + weight * targets[index + 1])
    return scaled_to_mean(shares, 1.0 - ratio)


def read_curve(path: Path) -> NDArray[np.float64]:
    """Prune ratios of any shape, float64. Raises `UserError` where the file holds anything else."""
    try:
        values = np.load(path, mmap_mode="r", allow_pickle=False)  # checks the size that it claims
    except Exception as error:  # of many kinds, for files of any content
        raise UserError(f"{path}: not a readable .npy file ({first_line(error)})") from None
    if not isinstance(values, np.ndarray) or values.dtype.kind != "f":
        kind = values.dtype if isinstance(values, np.ndarray) else "an archive"
        raise UserError(f"{path}: expected prune ratios as floating-point numbers, got {kind}")
    if not (np.isfinite(values).all() and (values >= 0).all() and (values <= 1).all()):
        raise UserError(f"{path}: every prune ratio must be a number in [0, 1]")
    return values.astype(np.float64)


def scaled_to_mean(shares: NDArray[np.float64], mean: float) -> NDArray[np.float64]:
    """Shares with the given mean: all scaled by the same factor, or all removed fractions where too little is kept."""
    current = float(shares.mean())
    if current > mean:
        return shares * (mean / current)
    removed = (1.0 - shares) * ((1.0 - mean) / (1.0 - current) if current < 1.0 else 1.0)
    return np.clip(1.0 - removed, 0.0, 1.0)
