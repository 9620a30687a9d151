"""Finds each layer's output projection and its path to the residual stream by tracing tensors through a short pass."""

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
from baklava.decoder.placement import device_of
from baklava.errors import UserError

# Names of torch functions, without the underscores of operators and in-place versions.
ADDS = ("add", "iadd", "radd")
MULTIPLIES = ("mul", "imul", "rmul", "multiply")
SCALES = (*MULTIPLIES, "div", "truediv", "itruediv")
REORDERS = ("transpose", "permute")
SEVERAL_CALLS = "one of several calls of the attention"
PRESERVING = (  # the same values in the same order
    *("view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "contiguous", "clone", "detach", "dropout"),
    *("to", "type", "type_as", "float", "half", "bfloat16", "double"),
)


def trace_attention_paths(model: PreTrainedModel, layers: Sequence[int]) -> dict[int, AttentionPath]:
    """Trace the paths of these layers, by index, in one pass over two tokens.

    Names of modules play no role. Raises `UserError` that names the layer's module if its attention is invisible, or
    reaches the stream in a way that `AttentionPath` cannot express.
    """
    tracer = _Tracer(_find_layers(model))
    with tracer.watching(model), torch.inference_mode(), tracer:
        # Not tokens 0 and 1: one of them is often padding, with an embedding of 0.
        device = device_of(model.get_input_embeddings())
        model(torch.tensor([[2, 3]], device=device), use_cache=False, observer=tracer.observe)
    return {index: tracer.path(index) for index in layers}


@dataclass(frozen=True, eq=False)
class _Trace:
    """What is known of a tensor that comes from a layer's attention."""

    index: int
    attention: nn.Module
    heads: Tensor  # its outputs [B, Hq, T, D]
    gated: bool = False  # whether they were multiplied by anything before the projection
    projection: nn.Module | None = None
    example: Tensor | None = None
    steps: tuple[Step, ...] = ()
    lost: str | None = None  # the operation after which the path is unknown

    def with_step(self, step: Step) -> _Trace:
        return replace(self, steps=(*self.steps, step))

    def lose(self, where: str) -> _Trace:
        return replace(self, lost=self.lost or where)


class _Tracer(TorchFunctionMode):
    """Sees every torch function and module of a pass, and traces what comes from attention until it is added."""

    def __init__(self, layers: dict[nn.Module, tuple[int, nn.Module]]):
        super().__init__()
        self._layers = layers
        self._entered: dict[nn.Module, Tensor | None] = {layer: None for _, layer in layers.values()}
        self._paths: dict[int, AttentionPath] = {}
        self._last: dict[int, _Trace] = {}  # how far each layer's attention was traced
        self._inside: nn.Module | None = None  # a module whose only input is a traced tensor

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
        """Start a trace; the attention function calls this with its tensors."""
        if module not in self._layers:
            return
        index, _layer = self._layers[module]
        again = self._paths.pop(index, None) is not None or index in self._last
        self._mark(output, _Trace(index, module, output, lost=SEVERAL_CALLS if again else None))

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Hook all modules within the block."""
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
        given = [value for value in (*args, *kwargs.values()) if value is not None]
        if self._inside is None and len(given) == 1 and args and self._traces(given):
            self._inside = module

    def _leave(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if self._inside is not module:
            return
        [trace] = self._traces(args)
        if isinstance(output, Tensor) and output is not args[0]:
            self._mark(output, _after_module(trace, module, args[0], output))
        self._inside = None

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        origins = [] if self._inside is not None else self._traces((*args, *kwargs.values()))
        if not origins:
            return func(*args, **kwargs)
        name = func.__name__.strip("_")
        trace = origins[0] if len(origins) == 1 else origins[0].lose(name)
        if trace.lost is None and name in ADDS and self._ends_at_sum(trace, args, kwargs):
            return func(*args, **kwargs)
        trace = self._after_function(trace, name, args, kwargs)
        result = func(*args, **kwargs)
        for tensor in result if isinstance(result, tuple | list) else (result,):
            self._mark(tensor, trace)
        return result

    def _after_function(self, trace: _Trace, name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> _Trace:
        """Continue a trace through a function that does not add to the stream."""
        if trace.lost is not None or name in PRESERVING:
            return trace
        if trace.projection is None and name in (*MULTIPLIES, *REORDERS):
            return replace(trace, gated=trace.gated or name in MULTIPLIES)
        if trace.projection is not None and name in SCALES and len(args) == 2 and not kwargs:
            ours, factor = args if self._traces(args[:1]) else reversed(args)
            constant = isinstance(factor, int | float) or (isinstance(factor, Tensor) and factor.ndim <= 1)
            if constant and name in MULTIPLIES:
                return trace.with_step(factor)
            if constant and ours is args[0]:
                return trace.with_step(1 / factor)
        return trace.lose(name)

    def _ends_at_sum(self, trace: _Trace, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
        """Whether a sum adds the attention's contribution to the stream, or to other contributions of the layer."""
        ours, other = args[:2] if self._traces(args[:1]) else (args[1], args[0])
        projection, example = trace.projection, trace.example
        if projection is None or example is None or not isinstance(other, Tensor) or other.shape != ours.shape:
            return False
        layer = self._layers[trace.attention][1]
        if _is_scaled(self._entered[layer], other):
            self._mark(ours, trace.lose("a sum with a stream that is scaled first"))
            return True
        if kwargs.get("alpha", 1) != 1:
            trace = trace.with_step(kwargs["alpha"]) if ours is args[1] else trace
        self._paths[trace.index] = AttentionPath(layer, trace.attention, projection, example, trace.steps)
        return True

    def _traces(self, values: Iterable[Any]) -> list[_Trace]:
        """Return the unfinished traces of the tensors among these values."""
        tensors = (item for value in values for item in (value if isinstance(value, tuple | list) else (value,)))
        traces = (getattr(tensor, "baklava_trace", None) for tensor in tensors if isinstance(tensor, Tensor))
        return [trace for trace in traces if trace is not None and trace.index not in self._paths]

    def _mark(self, value: Any, trace: _Trace) -> None:
        if isinstance(value, Tensor):
            value.baklava_trace = trace  # type: ignore[attr-defined]
            self._last[trace.index] = trace


def _after_module(trace: _Trace, module: nn.Module, given: Tensor, output: Tensor) -> _Trace:
    """Continue a trace through a module whose only input is the traced tensor."""
    if trace.lost is not None or torch.equal(output, given):
        return trace
    if trace.projection is None:
        in_order = trace.heads.transpose(1, 2).reshape(given.shape)
        if not trace.gated and not torch.equal(given, in_order.to(given.dtype)):
            return trace.lose("another order of its heads")
        if is_linear(module, given, output):
            return replace(trace, projection=module, example=given.clone())
        return trace.lose(type(module).__name__)
    alone = module.forward(given[..., -1:, :])
    if torch.allclose(alone, output[..., -1:, :], rtol=1e-2, atol=1e-2 * float(output.abs().amax())):
        return trace.with_step(module)
    return trace.lose(type(module).__name__)  # it mixes positions


def _is_scaled(entered: Tensor | None, other: Tensor) -> bool:
    """Whether `other` is the stream that entered a layer, `[1, 2, hidden]`, times factors per position or channel."""
    if entered is None or entered.numel() != other.numel():
        return False
    stream, summand = entered.double(), other.reshape(entered.shape).double()
    if torch.allclose(stream, summand, rtol=1e-2, atol=0.0):
        return False
    [[x, y]], [[a, b]] = stream, summand
    return float(torch.cosine_similarity(a * y, b * x, dim=0)) > 0.999


def _find_layers(model: nn.Module) -> dict[nn.Module, tuple[int, nn.Module]]:
    """Map each module inside a list of layers to the layer's index and the layer."""
    return {
        module: (index, layer)
        for layers in model.modules()
        if isinstance(layers, nn.ModuleList)
        for index, layer in enumerate(layers)
        for module in layer.modules()
    }
