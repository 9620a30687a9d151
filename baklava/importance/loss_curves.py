"""Measured importance: how the loss of known continuations rises as each KV cache, alone, keeps less."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from baklava.errors import UserError
from baklava.system.fingerprint import fingerprint
from baklava.system.tensors import read_tensors, write_tensors

if TYPE_CHECKING:
    from baklava.importance.profile import Profile

SCHEMA = 1
WHAT = "file of curves"
HINT = "`baklava curves`"


@dataclass(frozen=True, eq=False)
class LossCurves:
    """Loss increase when one KV cache alone is cut to share `levels[k]` of the context and all others stay full.

    `rises` `[P, K, L, Hkv]`: the loss (nats per answer token) minus that of the full cache, `full` `[P]`, per prompt.
    `eviction` names the eviction policy under which they were measured. `meta` says what was measured and how: model
    path and revision, calibration fingerprint, the policy's parameters, versions.
    """

    model: str
    eviction: str
    levels: tuple[float, ...]
    rises: NDArray[np.float32]
    full: NDArray[np.float32]
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, int]:
        """(n_layers, n_kv_heads)."""
        return self.rises.shape[2], self.rises.shape[3]

    @property
    def fingerprint(self) -> str:
        """Hex digest that changes with any rise or level."""
        return fingerprint(self.levels, hashlib.sha256(self.rises.tobytes()).hexdigest())

    def mean(self) -> NDArray[np.float64]:
        """Mean rise over the prompts, `[K, L, Hkv]`."""
        return self.rises.astype(np.float64).mean(0)

    def importance(self) -> NDArray[np.float64]:
        """The ranking score `measured` of each KV cache, `[L, Hkv]`: its mean rise over the levels."""
        return self.mean().mean(0)

    def save(self, path: Path) -> None:
        """Write a safetensors file with a JSON header, atomically."""
        header = {"model": self.model, "eviction": self.eviction, "levels": list(self.levels), **self.meta}
        write_tensors(path, {"rises": self.rises, "full": self.full}, header, schema=SCHEMA, what=WHAT)

    @classmethod
    def load(cls, path: Path, profile: Profile, policy: Mapping[str, object]) -> LossCurves:
        """Read the curves that go with a profile and an eviction policy, given as the values of its configuration.

        Raises `UserError` for a missing, broken or newer file, and for curves of another model or policy.
        """
        meta, arrays = read_tensors(path, schema=SCHEMA, what=WHAT, hint=HINT)
        try:
            curves = cls(
                meta.pop("model"),
                meta.pop("eviction"),
                tuple(meta.pop("levels")),
                arrays["rises"],
                arrays["full"],
                meta,
            )
        except (KeyError, TypeError) as error:
            raise UserError(f"{path}: not a readable {WHAT} ({error})") from None
        n_prompts = len(curves.full)
        expected = (n_prompts, len(curves.levels), profile.n_layers, profile.n_kv_heads)
        if curves.model != profile.model or curves.rises.shape != expected:
            raise UserError(
                f"{path}: curves of {curves.model}, {list(curves.rises.shape)}, do not go with the profile of "
                f"{profile.model}, {list(expected)}: prompts, levels, layers, KV heads; make them again with {HINT}"
            )
        if curves.meta.get("policy") != policy:
            raise UserError(
                f"{path}: curves of the eviction policy {curves.eviction} with other parameters or another name than "
                f"{policy['name']}; make them again with {HINT}"
            )
        return curves
