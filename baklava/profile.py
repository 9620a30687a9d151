"""The profile of a model: how important each KV cache is, from one prefill per calibration prompt."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor, nn
from tqdm import tqdm

from baklava.calibration import Calibration, Prompt
from baklava.config import ProfileConfig
from baklava.errors import UserError
from baklava.files import atomic
from baklava.importance import ESTIMATORS
from baklava.importance.base import HeadView, cosine_distance
from baklava.jobs import ProfileJob
from baklava.models.load import LoadedModel, load_model

SCHEMA = 1


@dataclass(frozen=True, eq=False)
class Profile:
    """Importance per prompt: `head_importance[estimator]` `[P, L, Hq]`, `layer_importance` `[P, L]`.

    `meta` says what it was measured on: model path and revision, calibration fingerprint, settings, versions.
    """

    model: str
    n_kv_heads: int
    head_importance: dict[str, NDArray[np.float32]]
    layer_importance: NDArray[np.float32]
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def n_layers(self) -> int:
        return self.layer_importance.shape[1]

    @property
    def n_q_heads(self) -> int:
        return next(iter(self.head_importance.values())).shape[2]

    def kv_importance(self, estimator: str, *, pool: str = "mean") -> NDArray[np.float64]:
        """Importance per KV cache `[L, Hkv]`: mean over prompts, pooled ("mean" or "max") over the GQA group."""
        heads = self.head_importance[estimator].astype(np.float64).mean(0)
        groups = heads.reshape(self.n_layers, self.n_kv_heads, -1)
        if pool not in ("mean", "max"):
            raise UserError(f"unknown pooling {pool!r} over the GQA group; known: mean, max")
        return groups.mean(-1) if pool == "mean" else groups.max(-1)

    def save(self, path: Path) -> None:
        """Write a safetensors file with a JSON header, atomically."""
        tensors = {f"head_importance.{name}": values for name, values in self.head_importance.items()}
        header = {"schema_version": SCHEMA, "model": self.model, "n_kv_heads": self.n_kv_heads, **self.meta}
        with atomic(path) as unfinished:
            save_file(
                {**tensors, "layer_importance": self.layer_importance},
                unfinished,
                metadata={"profile": json.dumps(header, sort_keys=True)},
            )

    @classmethod
    def load(cls, path: Path) -> Profile:
        """Read a profile. Raises `UserError` for a missing, broken or newer file."""
        if not path.is_file():
            raise UserError(f"{path}: no such profile; make it with `baklava profile`")
        try:
            with safe_open(path, "np") as file:
                meta = json.loads((file.metadata() or {})["profile"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if meta.pop("schema_version") != SCHEMA:
                raise UserError(f"{path}: a profile of another schema; make it again with `baklava profile`")
            prefix = "head_importance."
            heads = {name.removeprefix(prefix): array for name, array in tensors.items() if name.startswith(prefix)}
            return cls(meta.pop("model"), meta.pop("n_kv_heads"), heads, tensors["layer_importance"], meta)
        except (SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise UserError(f"{path}: not a readable profile ({error})") from None


class _Recorder:
    """Sees one prompt go through the model and keeps a number per head and layer."""

    def __init__(self, loaded: LoadedModel, settings: ProfileConfig):
        self._estimators: dict[str, Callable[[HeadView], Tensor]] = {
            name: import_module(ESTIMATORS[name]).importance for name in settings.estimators
        }
        self._settings = settings
        self._places = {layer: place for place, layer in enumerate(loaded.budgeted_layers)}
        n_layers, n_heads = loaded.n_layers, loaded.n_q_heads
        self.heads = {name: torch.zeros(n_layers, n_heads) for name in self._estimators}
        self.layers = torch.zeros(n_layers)
        self.n_context = 0

    def observe(self, module: Any, query: Tensor, key: Tensor, value: Tensor, output: Tensor) -> None:
        """Called by the attention with `[1, H, T, D]` tensors of one layer."""
        if module.layer_idx not in self._places:
            return  # a sliding window
        view = self._view(module, query[0], key[0], value[0], output[0])
        for name, estimate in self._estimators.items():
            self.heads[name][self._places[module.layer_idx]] = estimate(view).cpu()

    def _view(self, module: Any, query: Tensor, key: Tensor, value: Tensor, output: Tensor) -> HeadView:
        group = query.shape[0] // key.shape[0]
        skip, look = self._settings.skip_first, slice(self.n_context, None)
        output = output.float()
        weight = module.o_proj.weight.float()  # [hidden, Hq * D]
        values = value.float().repeat_interleave(group, 0)  # small: one layer, one prompt
        return HeadView(
            values=values[:, skip:],
            outputs=output[:, skip:],
            look_back=output[:, look],
            evicted=self._evicted(query[:, look].float(), key.float(), value.float(), module.scaling),
            output_weight=weight.view(weight.shape[0], query.shape[0], -1).transpose(0, 1),
        )

    def _evicted(self, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """Outputs `[Hq, N, D]` of the last `N` queries that see only the sinks and the recent window."""
        n_kv_heads, length, head_dim = key.shape
        n = query.shape[1]
        window = max(1, int(self._settings.window * length))
        position = torch.arange(length, device=key.device)
        asking = position[length - n :, None]
        seen = (position <= asking) & ((position < self._settings.sinks) | (asking - position < window))  # [N, T]
        packed = query.reshape(n_kv_heads, -1, head_dim) * scaling  # [Hkv, group * N, D]
        scores = packed @ key.transpose(-1, -2)
        scores.masked_fill_(~seen.repeat(scores.shape[1] // n, 1), float("-inf"))
        return (scores.softmax(-1) @ value).reshape(query.shape)

    def layer_hook(self, index: int) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], None]:
        """Compares what enters the attention block with what leaves its residual add (pre-norm blocks)."""

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            before = self._residual[index][0, self._settings.skip_first :].float()
            added = output[0][0, self._settings.skip_first :].float()
            self.layers[index] = cosine_distance(before, before + added).cpu()

        return hook

    def keep_residual(self, index: int) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._residual = {index: args[0] if args else kwargs["hidden_states"]}

        return hook


def profile_prompts(loaded: LoadedModel, prompts: Sequence[Prompt], settings: ProfileConfig) -> Profile:
    """One prefill per prompt; no `T x T` matrix is ever made, only `N x T` for the `N` look-back positions.

    The look-back positions are those of the question and the answer.
    """
    recorder = _Recorder(loaded, settings)
    layers = loaded.model.get_decoder().layers
    hooks = []
    for i, layer in enumerate(layers[index] for index in loaded.budgeted_layers):
        hooks.append(layer.register_forward_pre_hook(recorder.keep_residual(i), with_kwargs=True))
        hooks.append(layer.self_attn.register_forward_hook(recorder.layer_hook(i), with_kwargs=True))
    heads: dict[str, list[Tensor]] = {name: [] for name in settings.estimators}
    layer_values = []
    try:
        for prompt in tqdm(prompts, desc=f"profile {loaded.name}", unit="prompt"):
            context, question, answer = prompt.token_ids(loaded)
            recorder.n_context = len(context)
            ids = torch.tensor([context + question + answer], device=loaded.device)
            with torch.inference_mode():
                loaded.model(ids, use_cache=False, logits_to_keep=1, observer=recorder.observe)
            for name, values in recorder.heads.items():
                heads[name].append(values.clone())
            layer_values.append(recorder.layers.clone())
    finally:
        for hook in hooks:
            hook.remove()
    return Profile(
        model=loaded.name,
        n_kv_heads=loaded.n_kv_heads,
        head_importance={name: torch.stack(values).numpy() for name, values in heads.items()},
        layer_importance=torch.stack(layer_values).numpy(),
    )


def profile(job: ProfileJob) -> None:
    """Profile a model on the calibration prompts and write the profile."""
    calibration = Calibration.load(job.prompts)
    loaded = load_model(job.model)
    measured = profile_prompts(loaded, calibration.profile, job.profile)
    meta = {
        "path": job.model.path,
        "revision": job.model.revision,
        "dtype": job.model.dtype,
        "calibration": calibration.fingerprint,
        "settings": job.profile.model_dump(mode="json"),
        "versions": {name: version(name) for name in ("torch", "transformers")},
    }
    Profile(measured.model, measured.n_kv_heads, measured.head_importance, measured.layer_importance, meta).save(
        job.output
    )
