"""Which tokens of a continuation need the context: those whose loss rises most without it.

The idea of LongPPL's key tokens (arXiv 2410.23771), found with the model at hand.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from baklava.decoder.length_dependent_rope import fixed_rotation
from baklava.models.load import LoadedModel


def cut_context(context: Sequence[int], *, sinks: int, window: int) -> list[int]:
    """The first `sinks` tokens of a context and its last `window`."""
    return list(context) if sinks + window >= len(context) else [*context[:sinks], *context[len(context) - window :]]


@torch.inference_mode()
def token_losses(loaded: LoadedModel, context: Sequence[int], continuation: Sequence[int]) -> Tensor:
    """Negative log-likelihood of each token of a continuation but the first, `[N - 1]`."""
    ids = torch.tensor([[*context, *continuation]], device=loaded.device)
    targets = ids[0, len(ids[0]) - len(continuation) + 1 :]
    with fixed_rotation(loaded.model, ids.shape[1]):
        logits = loaded.model(ids, use_cache=False, logits_to_keep=len(continuation)).logits[0, :-1]
    return torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none").cpu()


def positions_that_look_back(
    loaded: LoadedModel,
    context: Sequence[int],
    continuation: Sequence[int],
    *,
    part: float,
    sinks: int,
    window: float,
) -> tuple[int, ...]:
    """Where a query must look back, counted from the end of the context, in rising order.

    These are the positions right before the `part` of the tokens whose loss rises most when the context is cut to its
    first `sinks` tokens and its last ones, `window` of the prompt's length. It takes two passes. The first token is
    left out: its query belongs to the context.
    """
    n = len(continuation)
    n_recent = max(1, int(window * (len(context) + n)))
    short = cut_context(context, sinks=sinks, window=n_recent)
    rise = token_losses(loaded, short, continuation) - token_losses(loaded, context, continuation)
    order = torch.sort(rise, descending=True, stable=True).indices
    return tuple(sorted(order[: max(1, round(part * (n - 1)))].tolist()))
