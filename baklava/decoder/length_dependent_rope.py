"""Keeps rotary embeddings that depend on a text's length (LongRoPE, dynamic NTK) the same for the entire text.

Models of transformers choose such a rotation anew in every pass, by its last position and, with dynamic NTK, by the
longest text since the last short one. Keys that a cache holds from earlier passes would keep another rotation.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from baklava.errors import UserError

DYNAMIC, LONGROPE = "dynamic", "longrope"
FIXED = "_baklava_rotated_for"  # config attribute: the length for which the rotation is currently fixed


def kind_of(rope_type: str) -> str | None:
    """Return which length-dependent rotation a rope type is, by transformers' own tests; None if it is none."""
    return DYNAMIC if DYNAMIC in rope_type else LONGROPE if rope_type in (LONGROPE, "su") else None


@dataclass(frozen=True)
class Switch:
    """A rotation that changes beyond `limit` tokens: once for all longer texts (LongRoPE), or at every length."""

    kind: str
    limit: int

    def representative(self, length: int) -> int:
        """Return the length that represents all texts with the same rotation as one of `length` tokens."""
        if length <= self.limit:
            return self.limit
        return self.limit + 1 if self.kind == LONGROPE else length


def switch_of(config: PreTrainedConfig) -> Switch | None:
    """Find where the rotation of a decoder changes with the length; None if it never does.

    Raises `UserError` for layers whose rotations change at different lengths.
    """
    switches = {
        Switch(kind, rope.get("original_max_position_embeddings") or config.max_position_embeddings)
        if kind == LONGROPE
        else Switch(kind, config.max_position_embeddings)
        for rope in _ropes(config)
        if (kind := kind_of(str(rope.get("rope_type", rope.get("type")))))
    }
    if len(switches) > 1:
        kinds = " and ".join(sorted(f"{switch.kind!r} at {switch.limit} tokens" for switch in switches))
        raise UserError(f"layers whose rotations change at different lengths are not supported: rope types {kinds}")
    return next(iter(switches), None)


def _ropes(config: PreTrainedConfig) -> list[dict[str, Any]]:
    """Return the parameters of the rotation, or of each type of layer if these have their own."""
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    return [parameters for parameters in (rope, *rope.values()) if isinstance(parameters, dict)]


def fixed_length(config: PreTrainedConfig) -> int | None:
    """Return the length for which `fixed_rotation` currently fixes the rotation of this config's model."""
    return getattr(config, FIXED, None)


@contextmanager
def fixed_rotation(model: PreTrainedModel, length: int) -> Iterator[None]:
    """Within the block, a model rotates queries and keys as in one pass over `length` tokens.

    A text can then be read in chunks, compressed and continued, up to `length` tokens with its answer, independent of
    what was read before. The block changes nothing for models whose rotation does not depend on the length.

    Inside another such block, the outer one counts. Raises `UserError` if a pass reaches a length at which the rotation
    would change, and for models whose code is not in transformers.
    """
    config = model.config.get_text_config(decoder=True)
    switch = switch_of(config)
    if switch is None or fixed_length(config) is not None:
        yield
        return
    rotary = [module for module in model.get_decoder().modules() if _kinds(module)]
    if not rotary or any("position_ids" not in inspect.signature(module.forward).parameters for module in rotary):
        raise UserError(
            f"rope type {switch.kind!r} depends on the length of the text, and {config.model_type!r} models compute it "
            "in code that is not known here; use a checkpoint whose code is in transformers, or another rope type"
        )
    hooks = []
    setattr(config, FIXED, length)
    try:
        for module in rotary:
            hooks.append(module.register_forward_pre_hook(partial(_append_position, switch, length), with_kwargs=True))
            hooks.append(module.register_forward_hook(lambda module, args, output: _drop_position(output)))
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for module in rotary:
            _refresh(module)
        delattr(config, FIXED)


def _kinds(module: nn.Module) -> dict[str, str]:
    """Return the length-dependent rotations of a rotary embedding, by the prefix of their buffers."""
    rope_type = getattr(module, "rope_type", None)
    by_prefix = {f"{layer}_": value for layer, value in rope_type.items()} if isinstance(rope_type, dict) else {}
    if isinstance(rope_type, str):
        by_prefix = {"": rope_type}
    return {prefix: kind for prefix, value in by_prefix.items() if (kind := kind_of(value))}


def _refresh(module: nn.Module) -> None:
    """Make dynamic NTK forget the longest text so far."""
    for prefix, kind in _kinds(module).items():
        if kind == DYNAMIC:
            original, now = (getattr(module, f"{prefix}{name}") for name in ("original_inv_freq", "inv_freq"))
            setattr(module, f"{prefix}inv_freq", original.to(now.device))
            setattr(module, f"{prefix}max_seq_len_cached", module.original_max_seq_len)


def _append_position(switch: Switch, length: int, module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """Append the last position of `length` tokens, by which the module chooses the rotation."""
    call = inspect.signature(module.forward).bind(*args, **kwargs)
    positions: Tensor = call.arguments["position_ids"]  # [..., Q]
    reached = int(positions.max()) + 1
    if switch.representative(max(reached, length)) != switch.representative(length):
        raise UserError(
            f"rope type {switch.kind!r}: the rotation is fixed for {length} tokens and is another one for {reached}; "
            "give fixed_rotation the length of the whole text, what is generated included"
        )
    last = positions.new_full((*positions.shape[:-1], 1), length - 1)
    call.arguments["position_ids"] = torch.cat([positions, last], -1)
    _refresh(module)
    return call.args, call.kwargs


def _drop_position(output: Any) -> Any:
    """Drop the appended position from cosines and sines `[..., Q + 1, D]`."""
    return output[..., :-1, :] if isinstance(output, Tensor) else type(output)(_drop_position(part) for part in output)


def hold_rotation(embedding: nn.Module, length: int, call: Callable[[Tensor], Any]) -> None:
    """Make a rotary embedding of our own rotate as for `length` tokens from now on, whatever its positions.

    `call` calls it with positions `[1, Q]`.
    """
    if kinds := _kinds(embedding):
        call(torch.tensor([[length - 1]]))
        held = {prefix.removesuffix("_"): "held" for prefix in kinds}
        rope_type: Any = embedding.rope_type
        embedding.rope_type = {**rope_type, **held} if isinstance(rope_type, dict) else "held"  # type: ignore[assignment]


class RotationWatch:
    """Checks that all passes that a cache sees use the same rotation."""

    def __init__(self, config: PreTrainedConfig):
        self._config = config
        self._switch = switch_of(config)
        self.length: int | None = (
            None  # the rotation is that of texts of this length; None: does not matter, or not yet
        )

    def check(self, reached: int) -> None:
        """Check a pass that has read `reached` tokens, without padding.

        Raises `UserError` if it rotates otherwise than those before, or if that cannot be known.
        """
        switch = self._switch
        if switch is None:
            return
        fixed = fixed_length(self._config)
        if fixed is None and switch.kind == DYNAMIC and reached >= switch.limit:
            raise UserError(
                f"rope type {switch.kind!r}: from {switch.limit} tokens on, each token changes the rotation of all; "
                f"read and generate within `with baklava.fixed_rotation(model, n):`, n being all tokens of the text"
            )
        length = switch.representative(fixed or reached)
        if self.length is None:
            self.length = length
        elif self.length != length:
            raise UserError(
                f"rope type {switch.kind!r}: beyond {switch.limit} tokens the rotation is another one, and the keys in "
                "the cache have not got it; read and generate within `with baklava.fixed_rotation(model, n):`, n being "
                "all tokens of the text, what is generated included"
            )
