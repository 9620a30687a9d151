"""The calls that `generate` makes on a cache, by name, for tests with any cache and model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tiny_models import WINDOWED, random_model, random_tokens
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicSlidingWindowLayer

from baklava import Budgets
from baklava.decoder.releases import CHUNKS_NEW_TOKENS, TAKES_NEW_TOKENS_ONLY, WINDOWS_RECORD, reset_layer

FAMILIES = ("llama", "qwen2", "gemma3", "phi3")
N_NEW = 6
# Its end occurs before, so that there are candidates to look up. Token 0 is the padding.
PROMPT = torch.tensor([[5, 9, 11, 3, 5, 9, 11, 8, 5, 9, 11, 3, 7, 2, 5, 9, 11]])
PADDING = (0, 3, 6)

Run = Callable[[PreTrainedModel, Any], list[list[int]]]


@cache
def tiny(family: str) -> PreTrainedModel:
    return random_model(family)


@cache
def assistant(family: str) -> PreTrainedModel:
    return random_model(family, n_heads=2, attention="sdpa")


def budgets_of(family: str, ratio: float | None, *, seed: int = 0) -> Budgets:
    """Of one share for all KV caches, or of uneven ones (`ratio` None)."""
    shape = (1 if family in WINDOWED else 2, 2)
    if ratio is not None:
        return Budgets.uniform(n_layers=shape[0], n_kv_heads=shape[1], ratio=ratio)
    return Budgets.from_shares(np.random.default_rng(seed).uniform(0.2, 0.8, shape))


def rows() -> tuple[Tensor, Tensor]:
    """Three rows padded on the left, and their mask; the last one is the prompt that repeats itself."""
    ids = 1 + random_tokens(PROMPT.shape[1] + max(PADDING), rows=3) % 50
    ids[2, max(PADDING) :] = PROMPT
    mask = torch.ones_like(ids)
    for row, n in enumerate(PADDING):
        ids[row, :n] = mask[row, :n] = 0
    return ids, mask


def generate(model: PreTrainedModel, cache: Any, ids: Tensor | None, mask: Tensor, **how: Any) -> list[list[int]]:
    torch.manual_seed(3)
    settings = {"max_new_tokens": N_NEW, "do_sample": False, "pad_token_id": 0, **how}
    return model.generate(ids, attention_mask=mask, past_key_values=cache, **settings).tolist()


def one(**how: Any) -> Run:
    """The prompt as it is."""
    return lambda model, cache: generate(model, cache, PROMPT, torch.ones_like(PROMPT), **how)


def batch(**how: Any) -> Run:
    """Three rows with padding."""
    return lambda model, cache: generate(model, cache, *rows(), **how)


def embeddings(model: PreTrainedModel, cache: Any) -> list[list[int]]:
    embedded = model.get_input_embeddings()(PROMPT).detach()
    made = generate(model, cache, None, torch.ones_like(PROMPT), inputs_embeds=embedded)
    return [PROMPT[0].tolist() + made[0]]


def embeddings_and_tokens(model: PreTrainedModel, cache: Any) -> list[list[int]]:
    embedded = model.get_input_embeddings()(PROMPT).detach()
    return generate(model, cache, PROMPT, torch.ones_like(PROMPT), inputs_embeds=embedded)


def assisted(model: PreTrainedModel, cache: Any) -> list[list[int]]:
    return one(assistant_model=assistant(model.config.model_type.removesuffix("_text")))(model, cache)


def two_turns(between: Callable[[Any], Any] = lambda cache: cache, *, new_only: bool = False, **how: Any) -> Run:
    """The answer and a second question, which `generate` reads on after."""

    def run(model: PreTrainedModel, cache: Any) -> list[list[int]]:
        first = torch.tensor(one(**how)(model, cache))
        cache = between(cache)
        ids = torch.cat([first, 1 + random_tokens(5, seed=8) % 50], 1)
        given = ids[:, cache.get_seq_length() :] if new_only else ids
        made = generate(model, cache, given, torch.ones_like(ids), **how)
        return [ids[0].tolist() + made[0][given.shape[1] :]]

    return run


def read_before(mode: Callable[[], Any], n: int = 12) -> Run:
    """A part of the prompt is read in a call of its own; only that is the context."""

    def run(model: PreTrainedModel, cache: Any) -> list[list[int]]:
        with mode():
            model(PROMPT[:, :n], past_key_values=cache)
            model(PROMPT[:, n : n + 2], past_key_values=cache)
        return one()(model, cache)

    return run


def repeated(model: PreTrainedModel, cache: Any) -> list[list[int]]:
    """A context that was read once, for several beams."""
    with torch.no_grad():
        model(PROMPT[:, :12], past_key_values=cache)
    cache.batch_repeat_interleave(3)
    return one(num_beams=3, num_return_sequences=2)(model, cache)


def chosen(rows_kept: Any) -> Run:
    """Some rows of a batch go on."""

    def run(model: PreTrainedModel, cache: Any) -> list[list[int]]:
        ids = 1 + random_tokens(18, rows=3) % 50
        with torch.no_grad():
            model(ids[:, :12], past_key_values=cache)
        cache.batch_select_indices(rows_kept)
        return generate(model, cache, ids[rows_kept], torch.ones_like(ids[rows_kept]))

    return run


def taken_back(model: PreTrainedModel, cache: Any) -> list[list[int]]:
    cache.activate_past_recording()
    made = torch.tensor(one()(model, cache))
    cache.crop(-3)
    again = made[:, : cache.get_seq_length() + 1]
    return generate(model, cache, again, torch.ones_like(again))


def reset(cache: Any) -> Any:
    if isinstance(cache, DynamicCache):  # its own `reset` fills it with zeros before transformers 5.19
        for layer in cache.layers:
            reset_layer(layer)
    else:
        cache.reset()
    return cache


def looked_up(n: int, **how: Any) -> dict[str, Any]:
    """Prompt lookup, which transformers 5.0 does only where there is an end token; the model has no such token."""
    return {"prompt_lookup_num_tokens": n, "eos_token_id": 10_000, **how}


# Calls whose tokens are those of plain greedy decoding of the prompt.
GREEDY: dict[str, Run] = {
    "greedy": one(),
    "sampling from the best one": one(do_sample=True, top_k=1),
    "prompt lookup": one(**looked_up(4)),
    "prompt lookup, sampled": one(**looked_up(3), do_sample=True, top_k=1),
    "assisted": assisted,
    "chunks": one(prefill_chunk_size=5),
    "chunks of one": one(prefill_chunk_size=1),
    "chunks and one more": one(prefill_chunk_size=16),
    "embeddings": embeddings,
}
TAKES_BACK = {"prompt lookup", "prompt lookup, sampled", "assisted"}
CALLS: dict[str, Run] = {
    **GREEDY,
    "sampling": one(do_sample=True),
    "beams": one(num_beams=3),
    "sampled beams": one(num_beams=3, do_sample=True),
    "several sequences": one(num_return_sequences=3, do_sample=True),
    "several sequences of beams": one(num_beams=4, num_return_sequences=2, prefill_chunk_size=7),
    "padded": batch(),
    "padded, chunks shorter than the padding": batch(prefill_chunk_size=4),
    "padded, beams": batch(num_beams=3, num_return_sequences=2),
    "padded, several sequences": batch(num_return_sequences=2, do_sample=True),
    "two turns": two_turns(),
    "two turns, new tokens only": two_turns(new_only=True),
    "two turns in chunks": two_turns(prefill_chunk_size=4),
    "prompt lookup, then new tokens only": two_turns(new_only=True, **looked_up(3)),
    "a copy goes on": two_turns(copy.deepcopy),
    "forgets and begins anew": two_turns(reset),
    "embeddings and tokens": embeddings_and_tokens,
    "read before": read_before(torch.no_grad),
    "read before in inference mode": read_before(torch.inference_mode),
    "read before with gradients": read_before(torch.enable_grad),
    "read before, then beams": repeated,
    "some rows": chosen(torch.tensor([2, 0])),
    "rows by a mask": chosen(torch.tensor([True, False, True])),
    "rows from the end": chosen(torch.tensor([-1, -1])),
    "taken back": taken_back,
}


IN_CHUNKS = {call for call in CALLS if "chunks" in call} | {"several sequences of beams"}


def _cuts_windows() -> bool:
    """Whether a sliding window that records hands on only what its mask shows; 5.15 hands on all that it recorded."""
    window, tokens = DynamicSlidingWindowLayer(sliding_window=2), torch.zeros(1, 1, 2, 1)
    window.activate_past_recording()
    lengths = [(window.get_mask_sizes(2)[0], window.update(tokens, tokens)[0].shape[2]) for _ in range(3)]
    return all(shown == handed_on for shown, handed_on in lengths)


def skip_unsupported(call: str, family: str = "llama") -> None:
    """Skip what this release of transformers cannot do with any cache; a BudgetedCache refuses it."""
    reasons = {
        "cannot read new tokens only": "new tokens only" in call and not TAKES_NEW_TOKENS_ONLY,
        "counts positions wrongly after chunks": call in IN_CHUNKS and not TAKES_NEW_TOKENS_ONLY,
        "reads all again in chunks": call == "two turns in chunks" and not CHUNKS_NEW_TOKENS,
        "cannot take tokens back": call == "taken back" and not WINDOWS_RECORD,
        "cannot take tokens back from windows": (
            (call in TAKES_BACK or "prompt lookup" in call) and family in WINDOWED and not WINDOWS_RECORD
        ),
        "counts tokens wrongly after new tokens only": (
            call == "prompt lookup, then new tokens only" and not CHUNKS_NEW_TOKENS
        ),
        "hands on more of a recorded window than its mask shows": (
            call in ("assisted", "taken back") and family in WINDOWED and WINDOWS_RECORD and not _cuts_windows()
        ),
    }
    for reason, applies in reasons.items():
        if applies:
            pytest.skip(f"transformers {transformers.__version__} {reason}")
