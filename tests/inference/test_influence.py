"""Influence is the exact first-order change of the objective, on the losses that budgeted caches really have."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fixed_prompt import SIZES, FixedPrompt
from tiny_models import random_model, random_tokens

from baklava.budgets import Budgets
from baklava.calibration.prompts import Prompt
from baklava.eviction import EvictionPolicy, policy_named
from baklava.experiment.settings import Objective
from baklava.inference import influence as module
from baklava.inference.batch import BatchState, prefill
from baklava.inference.continuation_loss import ContinuationLosses
from baklava.inference.influence import LEVELS, InfluenceCache, InfluenceLayer, measure_influence, read_continuation
from baklava.models.load import LoadedModel

SHARES = np.array([[0.1, 0.5], [0.3, 0.2]])


def prompt() -> Prompt:
    return FixedPrompt("none", 0, "", "", "")


def load(family: str, dtype: torch.dtype = torch.float32) -> LoadedModel:
    model = random_model(family).to(dtype).requires_grad_(False)
    return LoadedModel(family, model, tokenizer=None)  # type: ignore[arg-type]


def budgets_for(loaded: LoadedModel) -> Budgets:
    return Budgets.from_shares(SHARES[: loaded.n_layers])


@pytest.mark.parametrize("family", ["llama", "qwen2", "phi3", "gemma2", "gemma3"])
@pytest.mark.parametrize("policy", ["streaming_llm", "keydiff", "h2o", "ada_snapkv", "layer_ada_critical_h2o"])
def test_what_is_differentiated_is_what_a_budgeted_cache_computes(family: str, policy: str) -> None:
    loaded = load(family)
    chosen = policy_named(policy) if policy != "ada_snapkv" else policy_named("adakv")
    context, question, answer = prompt().token_ids(loaded)
    full = prefill(loaded, [context], [chosen])
    cache = InfluenceCache(loaded.model.config, full.cache, budgets_for(loaded), chosen)  # type: ignore[arg-type]
    state = BatchState(cache, full.lengths.clone(), None)
    logits = state.read(loaded, [[*question, *answer][:-1]], logits_to_keep=len(answer))[0]
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor(answer)).item()
    [expected] = ContinuationLosses(loaded, chosen, batch_rows=1).losses(prompt(), [budgets_for(loaded)])
    assert loss == pytest.approx(expected, abs=1e-5)


class LongPrompt(FixedPrompt):
    """Three groups of entries and a few more."""

    def token_ids(self, model: LoadedModel) -> tuple[list[int], list[int], list[int]]:
        ids = random_tokens(120, seed=self.index)[0].tolist()
        return ids[:105], ids[105:112], ids[112:]


@pytest.mark.parametrize(("family", "policy"), [("llama", "streaming_llm"), ("gemma2", "snapkv")])
def test_the_influence_of_more_bits_is_what_they_change_in_a_budgeted_cache(family: str, policy: str) -> None:
    """To first order: at 8 bits, rounding changes little. What is stored in 16 bits already gains nothing by them."""
    loaded = load(family)
    one, shape = LongPrompt("none", 0, "", "", ""), budgets_for(loaded).shape
    bits = np.full((*shape, 2), 8)
    bits[0, 1] = 16, 8
    losses = ContinuationLosses(loaded, policy_named(policy), batch_rows=16)
    stored = [Budgets.from_shares(np.ones(shape), bits=bits)]
    for part, layer, head in np.ndindex(2, *shape):
        raised = bits.copy()
        raised[layer, head, part] = 16
        stored.append(Budgets.from_shares(np.ones(shape), bits=raised))
    influence = losses.precision([one], stored[0], (8, 16))
    current, *others = losses.losses(one, stored)
    assert np.abs(influence[:, 1]).max() > 1e-4 and influence[0, 1, 0, 1] == 0.0
    np.testing.assert_allclose(influence[:, 1].ravel(), others - current, rtol=0.1, atol=1e-5)
    at_8 = influence[:, 0].ravel()
    assert np.flatnonzero(at_8).tolist() == [1]  # less precise is only what is in 16 bits


def measured_with(
    loaded: LoadedModel,
    policy: EvictionPolicy,
    objective: Objective,
    monkeypatch: pytest.MonkeyPatch,
    *,
    amount: float,
    layer: int,
    head: int,
    level: int,
) -> float:
    """The objective if one KV head's outputs moved by `amount` of the way to those of a level."""
    context, question, answer = prompt().token_ids(loaded)
    full = prefill(loaded, [context], [policy])
    original = module._Attended.output
    caches: list[InfluenceCache] = []

    def moved(self: module._Attended) -> torch.Tensor:
        output = original(self)
        layers = [own for own in caches[-1].layers if isinstance(own, InfluenceLayer)]
        own = layers[layer]
        if self.values.shape[2] - self.n_context and torch.equal(self.keys[:, 0, : self.n_context], own.context_keys):
            seen = torch.cat([own.levels[level, head].expand(self.causal.shape[2], -1), self.causal[head, 0]], -1)
            scores = self.scores[head].masked_fill(~seen, -torch.inf)
            output = output.clone()
            output[head] += amount * (scores.softmax(-1) @ self.values[head] - output[head])
        return output

    def read(budgets: Budgets) -> torch.Tensor:
        caches.append(InfluenceCache(loaded.model.config, full.cache, budgets, policy))  # type: ignore[arg-type]
        state = BatchState(caches[-1], full.lengths.clone(), None)
        return state.read(loaded, [[*question, *answer][:-1]], logits_to_keep=len(answer))[0]

    reference = read(Budgets.uniform(n_layers=loaded.n_layers, n_kv_heads=2, ratio=0.0)).log_softmax(-1)
    with monkeypatch.context() as patch:
        patch.setattr(module._Attended, "output", moved)
        logits = read(budgets_for(loaded))
    if objective == "loss":
        return torch.nn.functional.cross_entropy(logits, torch.tensor(answer)).item()
    return (reference.exp() * (reference - logits.log_softmax(-1))).sum(-1).mean().item()


@pytest.mark.parametrize("objective", ["loss", "divergence"])
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_it_equals_finite_differences(family: str, objective: Objective, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, policy = load(family, torch.float64), policy_named("keydiff")
    context, question, answer = prompt().token_ids(loaded)
    full = prefill(loaded, [context], [policy])
    reference = None
    if objective == "divergence":
        everything = Budgets.uniform(n_layers=loaded.n_layers, n_kv_heads=2, ratio=0.0)
        tokens = [*question, *answer][:-1]
        reference = read_continuation(loaded, full, everything, policy, tokens, len(answer))[1].log_softmax(-1)
    influence = measure_influence(loaded, full, budgets_for(loaded), policy, question, answer, reference)
    assert influence.shape == (len(LEVELS), loaded.n_layers, 2)
    step = 1e-3  # the models' norms compute in float32, whatever their weights are
    for layer in range(loaded.n_layers):
        for head, level in ((0, 5), (1, 12), (0, len(LEVELS) - 1)):
            up, down = (
                measured_with(
                    loaded, policy, objective, monkeypatch, amount=amount, layer=layer, head=head, level=level
                )
                for amount in (step, -step)
            )
            assert influence[level, layer, head] == pytest.approx((up - down) / (2 * step), rel=2e-3, abs=3e-4)


def test_a_level_at_which_a_cache_is_has_no_influence() -> None:
    loaded, policy = load("llama"), policy_named("streaming_llm")
    context, question, answer = prompt().token_ids(loaded)
    assert len(context) == SIZES[0]
    shares = np.array([[1.0, 0.5], [0.3, 1.0]])
    full = prefill(loaded, [context], [policy])
    influence = measure_influence(loaded, full, Budgets.from_shares(shares), policy, question, answer)
    np.testing.assert_allclose(influence[-1, [0, 1], [0, 1]], 0.0, atol=1e-6)
    assert abs(influence[-1, 0, 1]) > 1e-4
    np.testing.assert_allclose(influence[LEVELS.index(0.3), 1, 0], 0.0, atol=1e-6)
