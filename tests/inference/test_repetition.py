"""KVzip: contexts are repeated after they were read, and entries score by the most attention that this pays them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import random_model, random_tokens
from torch import Tensor

from baklava.budgets import Budgets
from baklava.errors import UserError
from baklava.eviction import KVzip, SnapKV
from baklava.inference.batch import compress_rows, prefill
from baklava.models.load import LoadedModel

INSTRUCTION, GO_ON = [5, 9, 3], [7, 2]
CONTEXTS = [random_tokens(n, seed=n)[0].tolist() for n in (30, 23)]


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> LoadedModel:
    monkeypatch.setattr(
        LoadedModel, "encode", lambda self, text: INSTRUCTION if "once more, word for word:" in text else GO_ON
    )
    return LoadedModel("random", random_model(n_heads=4, n_kv_heads=2), tokenizer=None)  # type: ignore[arg-type]


def naive(loaded: LoadedModel, context: list[int], policy: KVzip) -> list[Tensor]:
    """Scores `[Hkv, S]` of each layer, from single passes over context and repetition, query by query."""
    scores = [torch.zeros(2, len(context), dtype=torch.float64) for _ in range(loaded.n_layers)]
    for start in range(0, len(context), policy.chunk):
        part = context[start : start + policy.chunk]
        before = [*GO_ON, *context[max(0, start - policy.overlap) : start]] if start else INSTRUCTION
        seen: list[tuple[Tensor, ...]] = []
        entered: list[Tensor] = []

        def observer(module: Any, query: Tensor, key: Tensor, value: Tensor, output: Tensor, **_: Any) -> None:
            seen.append((query[0], key[0], value[0]))  # noqa: B023

        def enter(module: Any, args: Any, kwargs: Any) -> None:
            entered.append(kwargs["hidden_states"][0])  # noqa: B023

        layers = loaded.model.model.layers
        hooks = [layer.self_attn.register_forward_pre_hook(enter, with_kwargs=True) for layer in layers]
        with torch.inference_mode():
            loaded.model(torch.tensor([[*context, *before, *part]]), use_cache=False, observer=observer)
        for hook in hooks:
            hook.remove()
        for layer, (query, key, value) in enumerate(seen):
            sinks = list(range(min(policy.n_sink, start)))
            own = list(range(start, start + len(part)))
            weight = loaded.model.model.layers[layer].self_attn.o_proj.weight.unflatten(1, (4, -1))
            for head in range(4):
                for t in range(len(context), key.shape[1]):
                    columns = [*sinks, *own, *range(len(context), t + 1)]
                    paid = (key[head // 2, columns] @ query[head, t] * key.shape[-1] ** -0.5).softmax(-1)
                    paid = paid[len(sinks) : len(sinks) + len(own)]
                    if policy.weighed:
                        written = value[head // 2, own] @ weight[:, head].T
                        paid = paid * written.norm(dim=-1) / entered[layer][t].norm()
                    scores[layer][head // 2, own] = torch.maximum(scores[layer][head // 2, own], paid.double())
    return scores


@pytest.mark.parametrize("weighed", [False, True])
@pytest.mark.parametrize("chunk", [12, 2048])
def test_scores_are_the_naive_ones_in_a_padded_batch(loaded: LoadedModel, chunk: int, weighed: bool) -> None:
    policy = KVzip(chunk=chunk, overlap=2, n_sink=3, weighed=weighed)
    full = prefill(loaded, CONTEXTS, [policy, SnapKV()])
    for row, context in enumerate(CONTEXTS):
        for layer, expected in zip(full.cache.layers, naive(loaded, context, policy), strict=True):
            [scored] = [one for one in layer.scores(policy) if int(one.group.indices_of(torch.tensor([row]))) >= 0]
            torch.testing.assert_close(
                scored.scores[int(scored.group.indices_of(torch.tensor([row])))].double(),
                expected,
                atol=1e-6,
                rtol=1e-5,
            )


def test_rows_of_equal_length_equal_rows_alone(loaded: LoadedModel) -> None:
    policy, contexts = KVzip(chunk=12), [CONTEXTS[0], CONTEXTS[0][::-1]]
    together = prefill(loaded, contexts, [policy]).cache
    alone = [prefill(loaded, [context], [policy]).cache for context in contexts]
    for layer, *others in zip(together.layers, *(cache.layers for cache in alone), strict=True):
        expected = torch.cat([other.scores(policy)[0].scores for other in others])
        torch.testing.assert_close(layer.scores(policy)[0].scores, expected)


def test_a_context_is_left_as_it_was_and_the_total_is_exact(loaded: LoadedModel) -> None:
    policy, plain = KVzip(chunk=12), prefill(loaded, CONTEXTS, [SnapKV()])
    full = prefill(loaded, CONTEXTS, [policy])
    assert torch.equal(full.lengths, plain.lengths)
    for layer, other in zip(full.cache.layers, plain.cache.layers, strict=True):
        assert torch.equal(layer.keys, other.keys)
    shares = [[[0.5, 0.1], [0.3, 0.2]], [[0.0, 0.9], [0.4, 0.1]], [[1.0, 1.0], [1.0, 1.0]]]
    budgets = [Budgets.from_shares(torch.tensor(one).numpy()) for one in shares]
    rows = compress_rows(loaded, full, budgets, [policy] * 3, [0, 1, 1])
    lengths = [30, 23, 23]
    expected = [int(one.entries(n).sum()) for one, n in zip(budgets, lengths, strict=True)]
    assert rows.kept_entries() == expected


def test_a_model_that_cannot_repeat_is_told_of(loaded: LoadedModel, capsys: pytest.CaptureFixture[str]) -> None:
    full = prefill(loaded, CONTEXTS, [KVzip()])
    [repetition] = full.cache.repetitions.values()
    assert len(repetition.losses) == 2
    assert min(repetition.losses) > 1
    assert repetition.seconds > 0
    assert "a loss of" in capsys.readouterr().err


def test_a_repetition_beyond_the_models_positions_is_refused(loaded: LoadedModel) -> None:
    context = random_tokens(loaded.n_positions - 10)[0].tolist()
    with pytest.raises(UserError, match=r"lower the chunk of eviction policy kvzip, or evaluate.length"):
        prefill(loaded, [context], [KVzip(chunk=64)])
