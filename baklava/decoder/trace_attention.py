"""Finds each layer's output projection and its way to the residual stream by following tensors through a short pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from baklava.decoder.attention_path import AttentionPath, Step, hidden_states
from baklava.decoder.linear import is_linear
from baklava.errors import UserError

# Names of torch functions, without the underscores of operators and in-place versions.
ADDS = ("add", "iadd", "radd")
MULTIPLIES = ("mul", "imul", "rmul", "multiply")
SCALES = (*MULTIPLIES, "div", "truediv", "itruediv")
TURNS = ("transpose", "permute")
MORE = "one of several calls of the attention"
SAME = (  # the same numbers in the same order
    *("view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "contiguous", "clone", "detach", "dropout"),
    *("to", "type", "type_as", "float", "half", "bfloat16", "double"),
)


def trace_attention_paths(model: PreTrainedModel, layers: Sequence[int]) -> dict[int, AttentionPath]:
    """The paths of some layers, by index, from one pass over two tokens.

    No name of a module is looked up. Raises `UserError` that names the layer's module where attention is out of sight
    or reaches the stream in a way that `AttentionPath` cannot say.
    """
    follower = _Follower(_layers_of(model))
    with follower.watching(model), torch.inference_mode(), follower:
        # Not tokens 0 and 1, of which one is often padding, whose embedding is 0.
        model(torch.tensor([[2, 3]], device=model.device), use_cache=False, observer=follower.observe)
    return {index: follower.path(index) for index in layers}


@dataclass(frozen=True, eq=False)
class _Followed:
    """What is known of a tensor that comes from a layer's attention."""

    index: int
    attention: nn.Module
    heads: Tensor  # its outputs [B, Hq, T, D]
    gated: bool = False  # whether they were multiplied with anything before the projection
    projection: nn.Module | None = None
    example: Tensor | None = None
    steps: tuple[Step, ...] = ()
    lost: str | None = None  # what makes the rest of the way unknown

    def through(self, step: Step) -> _Followed:
        return replace(self, steps=(*self.steps, step))

    def losing(self, where: str) -> _Followed:
        return replace(self, lost=self.lost or where)


class _Follower(TorchFunctionMode):
    """Sees every torch function and every module of a pass; marks what comes from attention until it is added."""

    def __init__(self, layers: dict[nn.Module, tuple[int, nn.Module]]):
        super().__init__()
        self._layers = layers
        self._entered: dict[nn.Module, Tensor | None] = {layer: None for _, layer in layers.values()}
        self._paths: dict[int, AttentionPath] = {}
        self._last: dict[int, _Followed] = {}  # how far each layer's attention was followed
        self._inside: nn.Module | None = None  # a module that takes a followed tensor and nothing else

    def path(self, index: int) -> AttentionPath:
        if index in self._paths:
            return self._paths[index]
        last = self._last.get(index)
        if last is None:
            raise UserError(f"layer {index} does not show its attention; this kind of model cannot be profiled")
        how = f"reaches the residual stream through {last.lost}" if last.lost else "does not reach the residual stream"
        raise UserError(
            f"layer {index}: the output of {type(last.attention).__name__} {how}; this kind of model cannot be profiled"
        )

    def observe(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, output: Tensor, **_: Any) -> None:
        """Called by the attention: here the way begins."""
        if module not in self._layers:
            return
        index, _layer = self._layers[module]
        again = self._paths.pop(index, None) is not None or index in self._last
        self._mark(output, _Followed(index, module, output, lost=MORE if again else None))

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Hooks on all modules, for the length of the block."""
        hooks = []
        try:
            for module in model.modules():
                hooks.append(module.register_forward_pre_hook(self._enter, with_kwargs=True))
                hooks.append(module.register_forward_hook(self._leave, with_kwargs=True))
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if module in self._entered:
            self._entered[module] = hidden_states(args, kwargs).clone()
        given = [one for one in (*args, *kwargs.values()) if one is not None]
        if self._inside is None and len(given) == 1 and args and self._followed(given):
            self._inside = module

    def _leave(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if self._inside is not module:
            return
        [followed] = self._followed(args)
        if isinstance(output, Tensor) and output is not args[0]:
            self._mark(output, _after_module(followed, module, args[0], output))
        self._inside = None

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        origins = [] if self._inside is not None else self._followed((*args, *kwargs.values()))
        if not origins:
            return func(*args, **kwargs)
        name = func.__name__.strip("_")
        followed = origins[0] if len(origins) == 1 else origins[0].losing(name)
        if followed.lost is None and name in ADDS and self._arrives(followed, args, kwargs):
            return func(*args, **kwargs)
        followed = self._after_function(followed, name, args, kwargs)
        result = func(*args, **kwargs)
        for one in result if isinstance(result, tuple | list) else (result,):
            self._mark(one, followed)
        return result

    def _after_function(self, followed: _Followed, name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> _Followed:
        """What is known of the result of a function that does not add to the stream."""
        if followed.lost is not None or name in SAME:
            return followed
        if followed.projection is None and name in (*MULTIPLIES, *TURNS):
            return replace(followed, gated=followed.gated or name in MULTIPLIES)
        if followed.projection is not None and name in SCALES and len(args) == 2 and not kwargs:
            ours, factor = args if self._followed(args[:1]) else reversed(args)
            constant = isinstance(factor, int | float) or (isinstance(factor, Tensor) and factor.ndim <= 1)
            if constant and name in MULTIPLIES:
                return followed.through(factor)
            if constant and ours is args[0]:
                return followed.through(1 / factor)
        return followed.losing(name)

    def _arrives(self, followed: _Followed, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
        """Whether a sum is that of the attention's contribution with the stream, or with others of the same layer."""
        ours, other = args[:2] if self._followed(args[:1]) else (args[1], args[0])
        projection, example = followed.projection, followed.example
        if projection is None or example is None or not isinstance(other, Tensor) or other.shape != ours.shape:
            return False
        layer = self._layers[followed.attention][1]
        if _is_scaled(self._entered[layer], other):
            self._mark(ours, followed.losing("a sum with a stream that is scaled first"))
            return True
        if kwargs.get("alpha", 1) != 1:
            followed = followed.through(kwargs["alpha"]) if ours is args[1] else followed
        self._paths[followed.index] = AttentionPath(layer, followed.attention, projection, example, followed.steps)
        return True

    def _followed(self, values: Iterable[Any]) -> list[_Followed]:
        """What is known of those among the values that are followed, of attention that was not added yet."""
        found = []
        for value in values:
            for one in value if isinstance(value, tuple | list) else (value,):
                known = getattr(one, "baklava_followed", None) if isinstance(one, Tensor) else None
                if known is not None and known.index not in self._paths:
                    found.append(known)
        return found

    def _mark(self, value: Any, followed: _Followed) -> None:
        if isinstance(value, Tensor):
            value.baklava_followed = followed  # type: ignore[attr-defined]
            self._last[followed.index] = followed


def _after_module(followed: _Followed, module: nn.Module, given: Tensor, output: Tensor) -> _Followed:
    """What is known of the output of a module that takes a followed tensor and nothing else."""
    if followed.lost is not None or torch.equal(output, given):
        return followed
    if followed.projection is None:
        in_order = followed.heads.transpose(1, 2).reshape(given.shape)
        if not followed.gated and not torch.equal(given, in_order.to(given.dtype)):
            return followed.losing("another order of its heads")
        if is_linear(module, given, output):
            return replace(followed, projection=module, example=given.clone())
        return followed.losing(type(module).__name__)
    alone = module.forward(given[..., -1:, :])
    if torch.allclose(alone, output[..., -1:, :], rtol=1e-2, atol=1e-2 * float(output.abs().amax())):
        return followed.through(module)
    return followed.losing(type(module).__name__)  # it mixes positions


def _is_scaled(entered: Tensor | None, other: Tensor) -> bool:
    """Whether `other` is the stream that entered a layer, `[1, 2, hidden]`, with factors per position or channel."""
    if entered is None or entered.numel() != other.numel():
        return False
    stream, summand = entered.double(), other.reshape(entered.shape).double()
    if torch.allclose(stream, summand, rtol=1e-2, atol=0.0):
        return False
    [[x, y]], [[a, b]] = stream, summand
    return float(torch.cosine_similarity(a * y, b * x, dim=0)) > 0.999


def _layers_of(model: nn.Module) -> dict[nn.Module, tuple[int, nn.Module]]:
    """For each module below a list of layers: the layer's index and the layer."""
    return {
        module: (index, layer)
        for layers in model.modules()
        if isinstance(layers, nn.ModuleList)
        for index, layer in enumerate(layers)
        for module in layer.modules()
    }
