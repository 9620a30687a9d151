"""Finds the prompt that `generate` is reading.

`generate` gives a cache only the tokens of one pass, so the rest is read from its local variables on the call stack.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import transformers
from torch import Tensor
from transformers import Cache, GenerationMixin

from baklava.errors import UserError

# The methods of `generate` that read a prompt; each holds the cache in its variable `cache`. Their code objects are
# compared by id at every pass: hashing one would take as long as the rest of the search.
_METHODS = ("_prefill", "_assisted_decoding")
_EXISTING = {name: method for name in _METHODS if (method := getattr(GenerationMixin, name, None)) is not None}
_NAMES = {id(method.__code__): name for name, method in _EXISTING.items()}


@dataclass(frozen=True)
class Prompt:
    """A prompt that `generate` is reading: `n_left` of its tokens are in the current pass and later ones.

    `mask` `[B, T]` shows the padding of the entire prompt if it is read in chunks (None: no padding). Each row of the
    user's batch comes as `copies` rows, one after another: beams, or several sequences.
    """

    n_left: int
    mask: Tensor | None = None
    copies: int = 1


def find_generate_prompt(cache: Cache, n_new: int) -> Prompt | None:
    """Find the prompt that `generate` reads into `cache` in a pass of `n_new` tokens; None if it reads none.

    Raises `UserError` for calls in which transformers would read tokens again that the cache holds already.
    """
    if len(_NAMES) < len(_METHODS):
        raise _unknown_transformers()
    frame = sys._getframe(1)
    while frame is not None:
        if (name := _NAMES.get(id(frame.f_code))) and frame.f_locals.get("cache") is cache:
            read = _read_prefill if name == "_prefill" else _read_assisted
            try:
                return read(frame.f_locals, cache.get_seq_length(), n_new)
            except KeyError:
                raise _unknown_transformers() from None
        frame = frame.f_back  # type: ignore[assignment]
    return None


def _unknown_transformers() -> UserError:
    return UserError(
        f"transformers {transformers.__version__} reads prompts in another way than a BudgetedCache knows; "
        "install a version that constraints.txt names"
    )


def _read_prefill(variables: Mapping[str, Any], seen: int, n_new: int) -> Prompt:
    """Read the variables of `_prefill`, which every decoding but assisted decoding uses."""
    config, embeddings = variables["generation_config"], variables["use_inputs_embeds"]
    if not variables["model_kwargs"]["use_cache"]:
        raise UserError("generate(use_cache=False) does not go with a cache; leave out one of the two")
    chunks, nth = variables.get("input_chunks", ()), variables.get("chunk_idx", 0)
    if nth == 0 and embeddings:
        _check_new(variables["model_kwargs"]["inputs_embeds"].shape[1], seen)
    elif nth == 0:
        _check_continuation(variables["input_ids"].shape[1], variables["mask_length"], seen)
    copies = max(config.num_beams or 1, config.num_return_sequences or 1)
    if embeddings or not chunks:  # transformers does not cut embeddings into chunks
        return Prompt(n_new, copies=copies)
    return Prompt(sum(chunk.shape[-1] for chunk in chunks[nth:]), variables["attention_mask"], copies)


def _read_assisted(variables: Mapping[str, Any], seen: int, n_new: int) -> Prompt | None:
    """Read the variables of assisted and prompt lookup decoding, whose first pass has prompt and candidates."""
    if not variables["is_first_iteration"]:
        return None
    n_candidates = variables["candidate_length"]
    mask = variables["model_kwargs"].get("attention_mask")
    n_masked = variables["generation_config"]._mask_length if mask is None else mask.shape[1]
    if seen and n_masked == variables["input_ids"].shape[1]:
        raise UserError(
            "assisted and prompt lookup decoding read the whole prompt again into a cache that holds part of it; "
            "use a new BudgetedCache, or give generate the new tokens only with an attention_mask for all tokens"
        )
    return Prompt(n_new - n_candidates)


def _check_continuation(n_tokens: int, n_masked: int, seen: int) -> None:
    """An input as long as the mask is, to transformers, all tokens, those in the cache first."""
    if n_masked == n_tokens:
        _check_new(n_tokens, seen)


def _check_new(n_tokens: int, seen: int) -> None:
    if n_tokens <= seen:
        raise UserError(
            f"generate was given {n_tokens} tokens, and the cache has read {seen}; give it all tokens with at least "
            "one new one, or the new ones only with an attention_mask for all tokens"
        )
