"""The profile of a model: how important each KV cache is, from one prefill per calibration prompt."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from baklava.errors import UserError
from baklava.system.fingerprint import fingerprint
from baklava.system.tensors import read_tensors, write_tensors

if TYPE_CHECKING:
    from baklava.importance.loss_curves import LossCurves

SCHEMA = 3
HEADS = "head_importance."


@dataclass(frozen=True, eq=False)
class Profile:
    """Importance per prompt: `head_importance[estimator]` `[P, L, Hq]`, `layer_importance` `[P, L]`.

    `meta` says what was measured and how: model path and revision, calibration fingerprint, settings, versions.
    `curves` are set where an allocator needs them; they depend on the eviction policy and have a file of their own.
    """

    model: str
    n_kv_heads: int
    head_importance: dict[str, NDArray[np.float32]]
    layer_importance: NDArray[np.float32]
    meta: dict[str, Any] = field(default_factory=dict)
    curves: LossCurves | None = None

    @property
    def fingerprint(self) -> str:
        """Hex digest that changes with any importance."""
        arrays = {**self.head_importance, "layer": self.layer_importance}
        return fingerprint({name: hashlib.sha256(array.tobytes()).hexdigest() for name, array in arrays.items()})

    @property
    def n_layers(self) -> int:
        return self.layer_importance.shape[1]

    @property
    def n_q_heads(self) -> int:
        return next(iter(self.head_importance.values())).shape[2]

    def kv_importance(self, estimator: str, *, pool: str = "mean") -> NDArray[np.float64]:
        """Importance per KV cache `[L, Hkv]`: mean over prompts, pooled ("mean" or "max") over the GQA group."""
        return self._pooled(self.head_importance[estimator].astype(np.float64).mean(0), pool)

    def kv_importance_of_prompts(self, estimator: str, *, pool: str = "mean") -> NDArray[np.float64]:
        """Importance per prompt and KV cache `[P, L, Hkv]`, pooled as in `kv_importance`."""
        return self._pooled(self.head_importance[estimator].astype(np.float64), pool)

    def _pooled(self, heads: NDArray[np.float64], pool: str) -> NDArray[np.float64]:
        groups = heads.reshape(*heads.shape[:-1], self.n_kv_heads, -1)
        if pool not in ("mean", "max"):
            raise UserError(f"unknown pooling {pool!r} over the GQA group; known: mean, max")
        return groups.mean(-1) if pool == "mean" else groups.max(-1)

    def save(self, path: Path) -> None:
        """Write a safetensors file with a JSON header, atomically."""
        arrays = {f"{HEADS}{name}": values for name, values in self.head_importance.items()}
        arrays["layer_importance"] = self.layer_importance
        header = {"model": self.model, "n_kv_heads": self.n_kv_heads, **self.meta}
        write_tensors(path, arrays, header, schema=SCHEMA, what="profile")

    @classmethod
    def load(cls, path: Path) -> Profile:
        """Read a profile. Raises `UserError` for a missing, broken or newer file."""
        meta, arrays = read_tensors(path, schema=SCHEMA, what="profile", hint="`baklava profile`")
        heads = {name.removeprefix(HEADS): array for name, array in arrays.items() if name.startswith(HEADS)}
        try:
            return cls(meta.pop("model"), meta.pop("n_kv_heads"), heads, arrays["layer_importance"], meta)
        except KeyError as error:
            raise UserError(f"{path}: not a readable profile ({error})") from None
