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

from baklava.decoder.releases import TAKES_NEW_TOKENS_ONLY, check_chunks
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
        if (name := _NAMES.get(id(frame.f_code))) and _is_given(cache, frame.f_locals):
            read = _read_prefill if name == "_prefill" else _read_assisted
            try:
                return read(frame.f_locals, cache, n_new)
            except KeyError:
                raise _unknown_transformers() from None
        frame = frame.f_back  # type: ignore[assignment]
    return None


def _is_given(cache: Cache, variables: Mapping[str, Any]) -> bool:
    arguments = variables.get("model_kwargs", {})
    return any(cache is given for given in (variables.get("cache"), arguments.get("past_key_values")))


def _unknown_transformers() -> UserError:
    return UserError(
        f"transformers {transformers.__version__} reads prompts in another way than a BudgetedCache knows; "
        "install a version that constraints.txt names"
    )


def _read_prefill(variables: Mapping[str, Any], cache: Cache, n_new: int) -> Prompt:
    """Read the variables of `_prefill`, which every decoding but assisted decoding uses."""
    config, arguments, seen = variables["generation_config"], variables["model_kwargs"], cache.get_seq_length()
    if not arguments["use_cache"]:
        raise UserError("generate(use_cache=False) does not go with a cache; leave out one of the two")
    embeddings = arguments.get("inputs_embeds") if variables.get("is_first_iteration", True) else None
    mask = variables["attention_mask"] if "attention_mask" in variables else arguments.get("attention_mask")
    chunks = variables.get("input_chunks", ())
    nth = next((nth for nth, chunk in enumerate(chunks) if chunk is variables.get("input_chunk")), 0)
    if nth == 0 and embeddings is not None:
        _check_new(embeddings.shape[1], seen)
    elif nth == 0:
        if chunks:
            check_chunks(seen)
        _check_continuation(variables["input_ids"].shape[1], _n_masked(mask, config), seen)
    copies = max(config.num_beams or 1, config.num_return_sequences or 1)
    if embeddings is not None or not chunks:  # transformers does not cut embeddings into chunks
        return Prompt(n_new, copies=copies)
    return Prompt(sum(chunk.shape[-1] for chunk in chunks[nth:]), mask, copies)


def _read_assisted(variables: Mapping[str, Any], cache: Cache, n_new: int) -> Prompt | None:
    """Read the variables of assisted and prompt lookup decoding, whose first pass has prompt and candidates."""
    if not variables["is_first_iteration"]:
        return None
    cache.activate_past_recording()  # as later releases do themselves
    n_masked = _n_masked(variables["model_kwargs"].get("attention_mask"), variables["generation_config"])
    n_candidates, n_tokens = variables["candidate_length"], variables["input_ids"].shape[1]
    if cache.get_seq_length() and (n_masked == n_tokens or not TAKES_NEW_TOKENS_ONLY):
        raise UserError(
            "assisted and prompt lookup decoding read the whole prompt again into a cache that holds part of it; "
            "use a new BudgetedCache, or give generate the new tokens only with an attention_mask for all tokens"
        )
    return Prompt(n_new - n_candidates)


def _n_masked(mask: Tensor | None, config: Any) -> int:
    """Count the positions of the mask that `generate` was given; -1 where it has forgotten them."""
    return getattr(config, "_mask_length", -1) if mask is None else mask.shape[1]


def _check_continuation(n_tokens: int, n_masked: int, seen: int) -> None:
    """An input as long as the mask is, to transformers, all tokens, those in the cache first."""
    if n_masked == n_tokens:
        _check_new(n_tokens, seen)
    elif seen and not TAKES_NEW_TOKENS_ONLY:
        raise UserError(
            f"generate of transformers {transformers.__version__} takes all tokens, those in the cache first; it was "
            f"given {n_tokens} with a mask of {n_masked}, and the cache has read {seen}"
        )


def _check_new(n_tokens: int, seen: int) -> None:
    if n_tokens <= seen:
        raise UserError(
            f"generate was given {n_tokens} tokens, and the cache has read {seen}; give it all tokens with at least "
            "one new one, or the new ones only with an attention_mask for all tokens"
        )
