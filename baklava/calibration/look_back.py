"""Finds context-dependent tokens: those of a continuation whose loss rises most without the context.

The idea is that of LongPPL's key tokens (arXiv 2410.23771), here found with the profiled model itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from baklava.decoder.length_dependent_rope import fixed_rotation
from baklava.models.load import LoadedModel


def cut_context(context: Sequence[int], *, sinks: int, window: int) -> list[int]:
    """Keep the first `sinks` tokens of a context and the last `window` tokens."""
    return list(context) if sinks + window >= len(context) else [*context[:sinks], *context[len(context) - window :]]


@torch.inference_mode()
def token_losses(loaded: LoadedModel, context: Sequence[int], continuation: Sequence[int]) -> Tensor:
    """Negative log-likelihood of each token of a continuation except the first, `[N - 1]`."""
    ids = torch.tensor([[*context, *continuation]], device=loaded.device)
    targets = ids[0, len(ids[0]) - len(continuation) + 1 :]
    with fixed_rotation(loaded.model, ids.shape[1]):
        logits = loaded.model(ids, use_cache=False, logits_to_keep=len(continuation)).logits[0, :-1]
    return torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none").cpu()


def find_context_dependent(
    loaded: LoadedModel,
    context: Sequence[int],
    continuation: Sequence[int],
    *,
    fraction: float,
    sinks: int,
    window: float,
) -> tuple[int, ...]:
    """Positions whose queries predict context-dependent tokens, counted from the end of the context, ascending.

    Context-dependent is the `fraction` of the tokens whose loss rises most when the context is cut to its first `sinks`
    tokens and a recent window, which is `window` of the prompt's length. This takes two passes. The first token is left
    out: its query belongs to the context.
    """
    n = len(continuation)
    n_recent = max(1, int(window * (len(context) + n)))
    short = cut_context(context, sinks=sinks, window=n_recent)
    rise = token_losses(loaded, short, continuation) - token_losses(loaded, context, continuation)
    order = torch.sort(rise, descending=True, stable=True).indices
    return tuple(sorted(order[: max(1, round(fraction * (n - 1)))].tolist()))
