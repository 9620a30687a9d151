"""Records the importance of every head and layer while prompts pass through a model, one after another."""

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
from baklava.experiment.settings import ProfileConfig
from baklava.importance import FROM_FILE, MODULES
from baklava.importance.base import HeadView, cosine_distance_to_sum
from baklava.importance.scores_file import read_scores
from baklava.importance.simulated_eviction import simulate_eviction
from baklava.models.load import LoadedModel


class AttentionCall(NamedTuple):
    """Tensors `[H, T, D]` of one layer's attention, the scaling of its scores and their bound (soft cap)."""

    query: Tensor
    key: Tensor
    value: Tensor
    output: Tensor
    scaling: float
    softcap: float | None


class Recorder:
    """Importance `heads[estimator]` `[L, Hq]` and `layers` `[L]` of the last recorded prompt.

    The attention passes the queries, keys, values and outputs of a layer to the recorder. Once its output is projected,
    the inputs of the block and what it adds to the residual stream are known too, and the estimators run.
    """

    def __init__(self, loaded: LoadedModel, settings: ProfileConfig):
        self._estimators: dict[str, Callable[[HeadView], Tensor]] = {
            name: import_module(MODULES[name]).importance for name in settings.estimators
        }
        self._scores = None
        if FROM_FILE in settings.estimators and settings.scores is not None:
            scores = read_scores(settings.scores, loaded.n_layers, loaded.n_kv_heads, loaded.n_q_heads)
            self._scores = torch.from_numpy(scores).to(loaded.device)
        self._reconstruction: Tensor | None = None
        self._settings = settings
        self._model = loaded.model
        self._row_of_layer = {layer: row for row, layer in enumerate(loaded.budgeted_layers)}
        self._paths = trace_attention_paths(loaded.model, loaded.budgeted_layers)
        self._layer_of_module = {path.attention: layer for layer, path in self._paths.items()}
        self._positions = torch.empty(0, dtype=torch.long)
        self._calls: dict[int, AttentionCall] = {}
        self._inputs: dict[int, Tensor] = {}
        # On the model's device: fetching a number from it at every layer would make it wait.
        shape, device = (loaded.n_layers, loaded.n_q_heads), loaded.device
        self.heads = {name: torch.zeros(shape, device=device) for name in self._estimators}
        self.layers = torch.zeros(loaded.n_layers, device=device)

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Within the block, hooks watch the layers that have budgets."""
        hooks = []
        try:
            for layer, path in self._paths.items():
                before, after = self._make_hooks(layer, path)
                hooks.append(path.layer.register_forward_pre_hook(before, with_kwargs=True))
                hooks.append(path.projection.register_forward_hook(after))
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def record(self, ids: Tensor, positions: Tensor, reconstruction: Tensor | None = None) -> None:
        """Prefill a prompt `[1, T]` and measure it at its context-dependent `positions` `[N]`.

        `reconstruction` `[L, Hq]` is what repeating its context has shown, for the estimator of that name.
        """
        self._positions, self._reconstruction = positions, reconstruction
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
        if module in self._layer_of_module:  # all other layers have a sliding window
            call = AttentionCall(query[0], key[0], value[0], output[0], scaling, softcap)
            self._calls[self._layer_of_module[module]] = call

    def _make_hooks(self, layer: int, path: AttentionPath) -> tuple[Callable[..., None], Callable[..., None]]:
        """A hook before the layer, which keeps its input, and one after the output projection, which measures."""

        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._inputs[layer] = hidden_states(args, kwargs)

        def after(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            call = self._calls.pop(layer)
            length = call.output.shape[1]
            heads, projected = args[0].reshape(length, -1), output.reshape(length, -1)
            stream = self._inputs.pop(layer)[0, self._settings.skip_first :]
            added = path.added(projected[self._settings.skip_first :])
            stream = stream.to(added.device)  # a layer's input may come from another device
            row = self._row_of_layer[layer]
            self.layers[row] = layer_importance = cosine_distance_to_sum(stream, added)
            view = self._view(layer, call, heads, projected, layer_importance)
            for name, estimate in self._estimators.items():
                self.heads[name][row] = estimate(view)

        return before, after

    def _view(
        self, layer: int, call: AttentionCall, heads: Tensor, projected: Tensor, layer_importance: Tensor
    ) -> HeadView:
        """`heads` `[T, Hq * D]` and `projected` `[T, hidden]` are the input and the output of the output projection."""
        settings, positions = self._settings, self._positions.to(call.query.device)
        attend = partial(
            simulate_eviction,
            call.query[:, positions],
            call.key,
            call.value,
            positions,
            scaling=call.scaling,
            softcap=call.softcap,
        )
        length = call.key.shape[1]
        evicted, far_mass = attend(sinks=settings.sinks, window=max(1, int(settings.window * length)))
        rounded = call.output[:, positions]
        # Half precision rounds the model's own output by more than eviction moves the outputs of most heads.
        full = attend(sinks=0, window=length)[0] if rounded.dtype in HALVES else rounded.float()
        return HeadView(
            layer=layer,
            seed=settings.seed,
            values=call.value[:, settings.skip_first :],
            outputs=call.output[:, settings.skip_first :],
            full=full,
            evicted=evicted,
            far_mass=far_mass,
            scales=find_scales(rounded.float().transpose(0, 1), heads[positions].float()),
            projected=projected[positions].to(torch.promote_types(projected.dtype, torch.float32)),
            path=self._paths[layer],
            scores=None if self._scores is None else self._scores[self._row_of_layer[layer]],
            reconstruction=None if self._reconstruction is None else self._reconstruction[self._row_of_layer[layer]],
            layer_importance=layer_importance,
        )


def find_scales(outputs: Tensor, projected: Tensor) -> Tensor | None:
    """Factors `[N, Hq, D]` between the heads' outputs and the input of the projection `[N, Hq * D]`; None: no factors.

    Gates multiply the outputs. An output of 0 says nothing about its gate, and its factor is set to 0.
    """
    scaled = projected.view(outputs.shape)
    if torch.equal(scaled, outputs):
        return None
    return torch.where(outputs == 0, 0.0, scaled / outputs)
