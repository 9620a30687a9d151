"""What `generate` is about to read: it tells a cache of the tokens of one pass only, so its own variables must say."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import transformers
from torch import Tensor
from transformers import Cache, GenerationMixin

from baklava.errors import UserError

# The methods of `generate` that read a prompt; each holds the cache in its variable `cache`. Their code is looked up at
# every pass, by its id, since its hash takes as long as the rest of the search.
_METHODS = ("_prefill", "_assisted_decoding")
_FOUND = {name: method for name in _METHODS if (method := getattr(GenerationMixin, name, None)) is not None}
_NAMES = {id(method.__code__): name for name, method in _FOUND.items()}


@dataclass(frozen=True)
class Prompt:
    """A prompt that `generate` is reading: `n_left` of its tokens are in the present pass and those to come.

    `mask` `[B, T]` shows the padding of all of it where it is read in chunks (None: there is none). Each row of the
    user's batch comes as `copies` rows, one after another: beams, or several sequences.
    """

    n_left: int
    mask: Tensor | None = None
    copies: int = 1


def prompt_of(cache: Cache, n_new: int) -> Prompt | None:
    """The prompt that `generate` reads into `cache` in a pass of `n_new` tokens; None where it reads none.

    Raises `UserError` for calls in which transformers would read into the cache what it holds already.
    """
    if len(_NAMES) < len(_METHODS):
        raise _unknown()
    frame = sys._getframe(1)
    while frame is not None:
        if (name := _NAMES.get(id(frame.f_code))) and frame.f_locals.get("cache") is cache:
            read = _prefill if name == "_prefill" else _assisted
            try:
                return read(frame.f_locals, cache.get_seq_length(), n_new)
            except KeyError:
                raise _unknown() from None
        frame = frame.f_back  # type: ignore[assignment]
    return None


def _unknown() -> UserError:
    return UserError(
        f"transformers {transformers.__version__} reads prompts in another way than a BudgetedCache knows; "
        "install a version that constraints.txt names"
    )


def _prefill(variables: Mapping[str, Any], seen: int, n_new: int) -> Prompt:
    """In `generate` with any decoding but an assisted one."""
    config, embeddings = variables["generation_config"], variables["use_inputs_embeds"]
    if not variables["model_kwargs"]["use_cache"]:
        raise UserError("generate(use_cache=False) does not go with a cache; leave out one of the two")
    chunks, nth = variables.get("input_chunks", ()), variables.get("chunk_idx", 0)
    if nth == 0 and embeddings:
        _check_new(variables["model_kwargs"]["inputs_embeds"].shape[1], seen)
    elif nth == 0:
        _check_whole(variables["input_ids"].shape[1], variables["mask_length"], seen)
    copies = max(config.num_beams or 1, config.num_return_sequences or 1)
    if embeddings or not chunks:  # which transformers does not cut
        return Prompt(n_new, copies=copies)
    return Prompt(sum(one.shape[-1] for one in chunks[nth:]), variables["attention_mask"], copies)


def _assisted(variables: Mapping[str, Any], seen: int, n_new: int) -> Prompt | None:
    """In assisted and prompt lookup decoding, which reads the first candidates together with the prompt."""
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


def _check_whole(n_tokens: int, n_masked: int, seen: int) -> None:
    """Where the mask is as long as the input, transformers takes that for all tokens, those in the cache first."""
    if n_masked == n_tokens:
        _check_new(n_tokens, seen)


def _check_new(n_tokens: int, seen: int) -> None:
    if n_tokens <= seen:
        raise UserError(
            f"generate was given {n_tokens} tokens, and the cache has read {seen}; give it all tokens with at least "
            "one new one, or the new ones only with an attention_mask for all tokens"
        )
