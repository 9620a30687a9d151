"""Replayed losses are the model's own, whatever is computed together and whatever is kept."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_models import VOCABULARY, random_model, random_tokens

import baklava.inference.continuation_loss
from baklava.budgets import Budgets
from baklava.calibration.prompts import Prompt
from baklava.errors import UserError
from baklava.eviction import H2O, StreamingLLM
from baklava.inference.batch import compress_rows, continuation_losses, prefill
from baklava.inference.continuation_loss import ContinuationLosses
from baklava.models.load import LoadedModel

BUDGETS = [Budgets.uniform(n_layers=2, n_kv_heads=2, ratio=ratio) for ratio in (0.0, 0.3, 0.6, 0.9)]


class FixedPrompt(Prompt):
    def token_ids(self, model):
        ids = random_tokens(36, seed=self.index)[0].tolist()
        return ids[:24], ids[24:31], ids[31:]


def prompt(index: int) -> Prompt:
    return FixedPrompt("none", index, "", "", "")


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return LoadedModel("random", random_model(), tokenizer=None)


@pytest.fixture
def prefills(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry per context that is read."""
    read = []

    def counted(*arguments):
        read.append(1)
        return prefill(*arguments)

    monkeypatch.setattr(baklava.inference.continuation_loss, "prefill", counted)
    return read


def test_losses_do_not_depend_on_the_batch_and_equal_the_model_s_own(loaded):
    together = ContinuationLosses(loaded, StreamingLLM(), batch_rows=4).losses(prompt(3), BUDGETS)
    in_pairs = ContinuationLosses(loaded, StreamingLLM(), batch_rows=2).losses(prompt(3), BUDGETS)
    np.testing.assert_allclose(together, in_pairs, atol=1e-6)
    context, question, answer = prompt(3).token_ids(loaded)
    ids = torch.tensor([context + question + answer])
    with torch.inference_mode():
        logits = loaded.model(ids, use_cache=False).logits[0, -len(answer) - 1 : -1].float()
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor(answer)).item()
    assert together[0] == pytest.approx(expected, abs=1e-5)


def test_a_shared_prefill_is_not_changed_by_its_rows(loaded):
    context, question, answer = prompt(0).token_ids(loaded)
    full = prefill(loaded, [context], [StreamingLLM()])
    before = [layer.keys.clone() for layer in full.cache.layers]
    budgets = [BUDGETS[0], BUDGETS[1]]
    continuation_losses(loaded, compress_rows(loaded, full, budgets, [StreamingLLM()] * 2), question, answer)
    assert all((layer.keys == keys).all() for layer, keys in zip(full.cache.layers, before, strict=True))


@pytest.mark.parametrize("policy", [StreamingLLM(), H2O()], ids=lambda policy: policy.family)
def test_contexts_that_fit_are_read_once_and_others_every_time_with_the_same_losses(loaded, prefills, policy):
    kept, none = (ContinuationLosses(loaded, policy, batch_rows=4, memory=memory) for memory in (2**20, 0))
    first = [kept.losses(prompt(i), BUDGETS) for i in (0, 1)]
    again = [kept.losses(prompt(i), BUDGETS) for i in (0, 1)]
    assert len(prefills) == 2
    fresh = [none.losses(prompt(i), BUDGETS) for i in (0, 1, 0, 1)]
    assert len(prefills) == 6
    np.testing.assert_array_equal([*first, *again], fresh)


def test_as_many_contexts_are_kept_as_fit_and_that_others_do_not_is_told_once(loaded, prefills, capsys):
    context = 2 * 2 * 2 * 24 * 8 * 8  # layers, KV heads, keys and values, tokens, dimensions, bytes
    reference = 4 * 5 * VOCABULARY  # what the full cache would write after 5 answer tokens, as it may be needed
    replay = ContinuationLosses(loaded, StreamingLLM(), batch_rows=4, memory=2 * (context + reference))
    for _ in range(2):
        for index in range(3):
            replay.losses(prompt(index), BUDGETS)
    assert len(prefills) == 4
    assert capsys.readouterr().err.count("memory for the contexts of 2 prompts, the others are read again") == 1


def test_without_budgets_there_are_no_losses_and_nothing_is_read(loaded, prefills):
    losses = ContinuationLosses(loaded, StreamingLLM(), batch_rows=4).losses(prompt(0), [])
    assert (losses.shape, losses.dtype, prefills) == ((0,), np.float64, [])


def test_memory_that_runs_out_is_one_line_with_a_remedy(loaded, monkeypatch):
    def out_of_memory(*_):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(baklava.inference.continuation_loss, "continuation_losses", out_of_memory)
    with pytest.raises(UserError, match=r"model random: not enough memory to read 3 rows .* lower search"):
        ContinuationLosses(loaded, StreamingLLM(), batch_rows=3).losses(prompt(0), BUDGETS)
