"""Context-dependent tokens: the positions right before the tokens that become hard without the context."""

from __future__ import annotations

import torch
from tiny_models import random_model, random_tokens

from baklava.calibration.look_back import cut_context, find_context_dependent, token_losses
from baklava.models.load import LoadedModel


def loaded() -> LoadedModel:
    return LoadedModel("random", random_model(), tokenizer=None)


def parts() -> tuple[list[int], list[int]]:
    ids = random_tokens(60)[0].tolist()
    return ids[:40], ids[40:]


def test_the_context_is_cut_to_its_sinks_and_its_end() -> None:
    context = list(range(10))
    assert cut_context(context, sinks=2, window=3) == [0, 1, 7, 8, 9]
    assert cut_context(context, sinks=0, window=1) == [9]
    assert cut_context(context, sinks=6, window=4) == context
    assert cut_context(context, sinks=60, window=4) == context


def test_losses_are_those_of_the_tokens_after_the_first() -> None:
    context, continuation = parts()
    logits = loaded().model(torch.tensor([context + continuation]), use_cache=False).logits[0]
    expected = [-logits[39 + i].log_softmax(-1)[continuation[i]].item() for i in range(1, 20)]
    torch.testing.assert_close(token_losses(loaded(), context, continuation), torch.tensor(expected))


def test_positions_are_those_before_the_tokens_whose_loss_rises_most() -> None:
    context, continuation = parts()
    positions = find_context_dependent(loaded(), context, continuation, fraction=0.25, sinks=2, window=0.1)
    full = token_losses(loaded(), context, continuation)
    short = token_losses(loaded(), context[:2] + context[-6:], continuation)
    rise = (short - full).tolist()  # of tokens 1, 2, ...; the query before token i + 1 is at i
    assert positions == tuple(sorted(sorted(range(19), key=lambda i: -rise[i])[:5]))


def test_there_is_always_one() -> None:
    context, continuation = parts()
    assert len(find_context_dependent(loaded(), context, continuation, fraction=0.001, sinks=2, window=0.1)) == 1
