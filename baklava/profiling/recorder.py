"""Watches one prompt after another go through a model and keeps a number per head and layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from baklava.cache.attention.backend import HALVES
from baklava.decoder.attention_path import AttentionPath, hidden_states
from baklava.decoder.length_dependent_rope import fixed_rotation
from baklava.decoder.trace_attention import trace_attention_paths
from baklava.experiment.schema import ProfileConfig
from baklava.importance import ESTIMATORS
from baklava.importance.base import HeadView, turn
from baklava.importance.simulated_eviction import simulated_eviction
from baklava.models.load import LoadedModel


class Shown(NamedTuple):
    """What the attention of one layer showed: `[H, T, D]` tensors, the scaling and the bound of the scores."""

    query: Tensor
    key: Tensor
    value: Tensor
    output: Tensor
    scaling: float
    softcap: float | None


class Recorder:
    """Importance `heads[estimator]` `[L, Hq]` and `layers` `[L]` of the prompt that went through last.

    The attention shows the queries, keys, values and outputs of a layer; when its output is projected, what entered the
    block and what goes into the residual stream is known too, and the estimators look.
    """

    def __init__(self, loaded: LoadedModel, settings: ProfileConfig):
        self._estimators: dict[str, Callable[[HeadView], Tensor]] = {
            name: import_module(ESTIMATORS[name]).importance for name in settings.estimators
        }
        self._settings = settings
        self._model = loaded.model
        self._places = {layer: place for place, layer in enumerate(loaded.budgeted_layers)}
        self._paths = trace_attention_paths(loaded.model, loaded.budgeted_layers)
        self._indices = {path.attention: index for index, path in self._paths.items()}
        self._positions = torch.empty(0, dtype=torch.long)
        self._shown: dict[int, Shown] = {}
        self._entered: dict[int, Tensor] = {}
        # On the model's device: fetching a number from it at every layer would make it wait.
        shape, device = (loaded.n_layers, loaded.n_q_heads), loaded.device
        self.heads = {name: torch.zeros(shape, device=device) for name in self._estimators}
        self.layers = torch.zeros(loaded.n_layers, device=device)

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Hooks on the layers that have budgets, for the length of the block."""
        hooks = []
        try:
            for index, path in self._paths.items():
                entering, leaving = self._block_hooks(index, path)
                hooks.append(path.layer.register_forward_pre_hook(entering, with_kwargs=True))
                hooks.append(path.projection.register_forward_hook(leaving))
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def record(self, ids: Tensor, look_back: Tensor) -> None:
        """One prefill of a prompt `[1, T]`; `look_back` `[N]` are the positions that must look back."""
        self._positions = look_back
        with torch.inference_mode(), fixed_rotation(self._model, ids.shape[1]):
            self._model(ids, use_cache=False, logits_to_keep=1, observer=self._observe)

    def _observe(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        output: Tensor,
        *,
        scaling: float,
        softcap: float | None,
    ) -> None:
        """Called by the attention with `[1, H, T, D]` tensors of one layer."""
        if module in self._indices:  # else it has a sliding window
            self._shown[self._indices[module]] = Shown(query[0], key[0], value[0], output[0], scaling, softcap)

    def _block_hooks(self, index: int, path: AttentionPath) -> tuple[Callable[..., None], Callable[..., None]]:
        """Before the layer: keep what enters. After the output projection: look."""

        def entering(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._entered[index] = hidden_states(args, kwargs)

        def leaving(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            shown = self._shown.pop(index)
            length = shown.output.shape[1]
            heads, projected = args[0].reshape(length, -1), output.reshape(length, -1)
            before = self._entered.pop(index)[0, self._settings.skip_first :]
            added = path.added(projected[self._settings.skip_first :])
            place = self._places[index]
            self.layers[place] = turned = turn(before, added)
            view = self._view(index, shown, heads, projected, turned)
            for name, estimate in self._estimators.items():
                self.heads[name][place] = estimate(view)

        return entering, leaving

    def _view(self, index: int, shown: Shown, heads: Tensor, projected: Tensor, layer_importance: Tensor) -> HeadView:
        """`heads` `[T, Hq * D]` and `projected` `[T, hidden]` are what the output projection took and gave."""
        settings, look = self._settings, self._positions
        attend = partial(
            simulated_eviction,
            shown.query[:, look],
            shown.key,
            shown.value,
            look,
            scaling=shown.scaling,
            softcap=shown.softcap,
        )
        length = shown.key.shape[1]
        evicted, far_mass = attend(sinks=settings.sinks, window=max(1, int(settings.window * length)))
        rounded = shown.output[:, look]
        # Half precision rounds the model's own output by more than eviction moves that of most heads.
        look_back = attend(sinks=0, window=length)[0] if rounded.dtype in HALVES else rounded.float()
        return HeadView(
            layer=index,
            seed=settings.seed,
            values=shown.value[:, settings.skip_first :],
            outputs=shown.output[:, settings.skip_first :],
            look_back=look_back,
            evicted=evicted,
            far_mass=far_mass,
            scales=scales(rounded.float().transpose(0, 1), heads[look].float()),
            projected=projected[look].to(torch.promote_types(projected.dtype, torch.float32)),
            path=self._paths[index],
            layer_importance=layer_importance,
        )


def scales(outputs: Tensor, projected: Tensor) -> Tensor | None:
    """What lies between the heads' outputs `[N, Hq, D]` and what the projection takes `[N, Hq * D]`; `None`: nothing.

    Gates multiply; an output of 0 tells nothing of its gate and counts as 0.
    """
    taken = projected.view(outputs.shape)
    if torch.equal(taken, outputs):
        return None
    return torch.where(outputs == 0, 0.0, taken / outputs)
