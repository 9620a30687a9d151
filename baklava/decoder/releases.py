"""What differs between the supported releases of transformers; nothing else in the package asks which one it runs on.

Differences are found by what the installed release has, not by its number; the numbers here say until when.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import GenerationMixin
from transformers.cache_utils import CacheLayerMixin, DynamicLayer, DynamicSlidingWindowLayer
from transformers.masking_utils import sdpa_mask as _sdpa_mask
from transformers.utils import logging

from baklava.errors import UserError

# Up to 5.3, caches and masks are given the positions of the queries; later their number and the first position.
_GIVES_POSITIONS = "cache_position" in inspect.signature(_sdpa_mask).parameters
# Up to 5.14, `crop` takes the length that remains; later the number of tokens to remove, as a negative number.
CROPS_TO_LENGTH = "max_length" in inspect.signature(DynamicLayer.crop).parameters
# Up to 5.14, a full sliding window cannot take tokens back; later it can be told to record them first.
WINDOWS_RECORD = hasattr(DynamicSlidingWindowLayer, "activate_past_recording")
# Up to 5.2, `generate` skips as many of the given tokens as the cache has read, whatever other tokens the mask shows.
_prefill = getattr(GenerationMixin, "_prefill", None)
TAKES_NEW_TOKENS_ONLY = _prefill is None or "next_sequence_length" in _prefill.__code__.co_varnames
# Up to 5.22, `generate` in chunks reads the whole prompt again where the cache holds a part of it.
CHUNKS_NEW_TOKENS = _prefill is None or "prefill_ids" in _prefill.__code__.co_varnames

# Up to 5.3, the bar of loaded weights cannot be hidden.
set_tqdm_hook: Callable[[Any], Any] = getattr(logging, "set_tqdm_hook", lambda hook: None)


_REMEDY = (
    "to take tokens back, call cache.activate_past_recording() before they are read"
    if WINDOWS_RECORD
    else f"transformers {transformers.__version__} cannot take tokens back there, 5.15 and later can"
)


class UnlimitedLayer(CacheLayerMixin):
    """A cache layer without a greatest length, under both names by which releases ask for it."""

    def get_max_length(self) -> int:
        return -1

    def get_max_cache_shape(self) -> int:  # up to 5.12
        return -1


def count_queries(queries: int | Tensor) -> int:
    """Count the queries of a pass from what `get_mask_sizes` is given: their number, or their positions `[Q]`."""
    return queries.shape[0] if isinstance(queries, Tensor) else queries


def takes_positions(make_mask: Callable[..., Tensor | None]) -> Callable[..., Tensor | None]:
    """Let a mask function of `q_length`, `q_offset` and `device` be called with the positions of the queries too."""

    def make(*, cache_position: Tensor | None = None, **arguments: Any) -> Tensor | None:
        if cache_position is None:
            return make_mask(**arguments)
        first, device = int(cache_position[0]), cache_position.device
        return make_mask(q_length=cache_position.shape[0], q_offset=first, device=device, **arguments)

    return make


def sdpa_mask(*, q_length: int, q_offset: int, device: torch.device | str = "cpu", **arguments: Any) -> Tensor | None:
    """Make the mask of transformers' own `sdpa` attention."""
    if _GIVES_POSITIONS:
        return _sdpa_mask(cache_position=torch.arange(q_offset, q_offset + q_length, device=device), **arguments)
    return _sdpa_mask(q_length=q_length, q_offset=q_offset, device=device, **arguments)


def read_crop(crop: int, seen: int) -> int:
    """Read the argument of `crop` as later releases do: how many of `seen` tokens to remove, as a negative number."""
    return min(0, crop - seen) if CROPS_TO_LENGTH and crop > 0 else crop


def record_windows(windows: Sequence[DynamicSlidingWindowLayer]) -> None:
    """Let sliding windows record tokens that may be taken back. Raises `UserError` where this release cannot."""
    if windows and not WINDOWS_RECORD:
        raise UserError(f"the sliding windows of this model drop tokens that are to be taken back; {_REMEDY}")
    for window in windows:
        window.activate_past_recording()


def crop_windows(windows: Sequence[Any], n: int) -> None:
    """Remove the last `n` tokens from sliding windows; with 0, only what they recorded beyond their length.

    Raises `UserError` where a window has dropped the tokens that would take their place.
    """
    full = [window for window in windows if window.get_seq_length() >= window.sliding_window]
    if any(not getattr(window, "record_past", False) for window in full):
        if n:
            raise UserError(f"the sliding windows of this model have dropped the tokens before; {_REMEDY}")
        return
    for window in windows if n or WINDOWS_RECORD else ():
        window.crop(-n)


def check_chunks(seen: int) -> None:
    """Raises `UserError` where this release reads a prompt wrongly in chunks, of which the cache has read `seen`."""
    what = f"generate(prefill_chunk_size=...) of transformers {transformers.__version__}"
    if not TAKES_NEW_TOKENS_ONLY:
        raise UserError(f"{what} counts the positions after the prompt wrongly; use cache.prefill(chunk=...)")
    if seen and not CHUNKS_NEW_TOKENS:
        raise UserError(f"{what} reads the whole prompt again into a cache that holds part of it; leave it out")


def reset_layer(layer: Any) -> None:
    """Empty a layer; before 5.19 a sliding window would keep its tokens, as zeros."""
    if isinstance(layer, DynamicLayer):
        layer.keys = layer.values = None
        layer.is_initialized = False
    layer.reset()
