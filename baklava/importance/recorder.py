"""Watches one prompt after another go through a model and keeps a number per head and layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from baklava.config import ProfileConfig
from baklava.importance import ESTIMATORS
from baklava.importance.base import HeadView, cosine_distance
from baklava.importance.simulated_eviction import simulated_eviction
from baklava.models.load import LoadedModel


class Recorder:
    """Importance `heads[estimator]` `[L, Hq]` and `layers` `[L]` of the prompt that went through last.

    The attention shows the queries, keys, values and outputs of a layer; when its block is done, what entered and what
    left the residual stream is known too, and the estimators look.
    """

    def __init__(self, loaded: LoadedModel, settings: ProfileConfig):
        self._estimators: dict[str, Callable[[HeadView], Tensor]] = {
            name: import_module(ESTIMATORS[name]).importance for name in settings.estimators
        }
        self._settings = settings
        self._model = loaded.model
        self._places = {layer: place for place, layer in enumerate(loaded.budgeted_layers)}
        self._positions = torch.empty(0, dtype=torch.long)
        self._shown: dict[int, tuple[Tensor, Tensor, Tensor, Tensor]] = {}
        self._entered: dict[int, Tensor] = {}
        # On the model's device: fetching a number from it at every layer would make it wait.
        shape, device = (loaded.n_layers, loaded.n_q_heads), loaded.device
        self.heads = {name: torch.zeros(shape, device=device) for name in self._estimators}
        self.layers = torch.zeros(loaded.n_layers, device=device)

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Hooks on the layers that have budgets, for the length of the block."""
        layers = self._model.get_decoder().layers
        hooks = []
        try:
            for index in self._places:
                entering, leaving = self._block_hooks(index)
                hooks.append(layers[index].register_forward_pre_hook(entering, with_kwargs=True))
                hooks.append(layers[index].self_attn.register_forward_hook(leaving))
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def record(self, ids: Tensor, look_back: Tensor) -> None:
        """One prefill of a prompt `[1, T]`; `look_back` `[N]` are the positions that must look back."""
        self._positions = look_back
        with torch.inference_mode():
            self._model(ids, use_cache=False, logits_to_keep=1, observer=self._observe)

    def _observe(self, module: Any, query: Tensor, key: Tensor, value: Tensor, output: Tensor) -> None:
        """Called by the attention with `[1, H, T, D]` tensors of one layer."""
        if module.layer_idx in self._places:  # else it has a sliding window
            self._shown[module.layer_idx] = (query[0], key[0], value[0], output[0])

    def _block_hooks(self, index: int) -> tuple[Callable[..., None], Callable[..., None]]:
        """Before the layer: keep what enters. After its attention: look (pre-norm blocks)."""

        def entering(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._entered[index] = args[0] if args else kwargs["hidden_states"]

        def leaving(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            before = self._entered.pop(index)[0, self._settings.skip_first :]
            added = output[0][0, self._settings.skip_first :]
            place = self._places[index]
            self.layers[place] = turned = cosine_distance(before, before + added)
            view = self._view(module, *self._shown.pop(index), turned)
            for name, estimate in self._estimators.items():
                self.heads[name][place] = estimate(view)

        return entering, leaving

    def _view(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, output: Tensor, layer_importance: Tensor
    ) -> HeadView:
        settings, look = self._settings, self._positions
        evicted, far_mass = simulated_eviction(
            query[:, look],
            key,
            value,
            look,
            sinks=settings.sinks,
            window=max(1, int(settings.window * key.shape[1])),
            scaling=module.scaling,
            softcap=getattr(module, "attn_logit_softcapping", None),
        )
        weight = module.o_proj.weight.float()  # [hidden, Hq * D]
        return HeadView(
            layer=module.layer_idx,
            seed=settings.seed,
            values=value[:, settings.skip_first :],
            outputs=output[:, settings.skip_first :],
            look_back=output[:, look].float(),
            evicted=evicted,
            far_mass=far_mass,
            output_weight=weight.view(weight.shape[0], query.shape[0], -1).transpose(0, 1),
            layer_importance=layer_importance,
        )
