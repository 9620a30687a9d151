"""Losses of many rows: each as if it were alone, by plain transformers; contexts in chunks as in one pass."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rope_models import BY_LENGTH, LIMIT, rotating_model
from tiny_models import CLASSES, random_model, random_tokens

from baklava.budgets import Budgets
from baklava.errors import UserError
from baklava.eviction import POLICIES as ALL_FAMILIES
from baklava.eviction import EvictionPolicy, SnapKV, StreamingLLM
from baklava.inference import batch as batch_module
from baklava.inference.batch import answer_losses, compress_rows, prefill
from baklava.models.load import LoadedModel

# The others need a tokenizer (test_repetition.py).
FAMILIES = {name: policy for name, policy in ALL_FAMILIES.items() if not policy().repeats}


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return LoadedModel("random", random_model(), tokenizer=None)  # type: ignore[arg-type]


def tokens(n: int, seed: int) -> list[int]:
    return random_tokens(n, seed=seed)[0].tolist()


CONTEXTS = [tokens(30, 0), tokens(41, 1)]
QUESTIONS = [tokens(1, 2), tokens(5, 3), tokens(2, 4)]
ANSWERS = [tokens(9, 5), tokens(4, 6), tokens(12, 7)]
ROWS = [0, 1, 1]  # which context
RATIOS = [0.0, 0.5, 0.8]
POLICIES = [StreamingLLM(), StreamingLLM(), SnapKV()]


def losses(loaded: LoadedModel, rows: list[int]) -> torch.Tensor:
    """Of these rows, computed together from contexts of different lengths."""
    full = prefill(loaded, CONTEXTS, list(dict.fromkeys(POLICIES)))
    budgets = [Budgets.uniform(n_layers=2, n_kv_heads=2, ratio=RATIOS[row]) for row in rows]
    state = compress_rows(loaded, full, budgets, [POLICIES[row] for row in rows], [ROWS[row] for row in rows])
    return answer_losses(loaded, state, [QUESTIONS[row] for row in rows], [ANSWERS[row] for row in rows])


def test_with_the_full_cache_the_loss_is_that_of_plain_transformers(loaded: LoadedModel) -> None:
    question, answer = QUESTIONS[0], ANSWERS[0]
    ids = torch.tensor([CONTEXTS[0] + question + answer])
    labels = ids.clone()
    labels[:, : -len(answer)] = -100
    plain = random_model(attention="sdpa")
    with torch.inference_mode():
        expected = plain(ids, labels=labels).loss
    torch.testing.assert_close(losses(loaded, [0])[0], expected.float(), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("most", [1, 3 * 60 * 4, 2**26])
def test_rows_do_not_depend_on_each_other_nor_on_the_steps(
    loaded: LoadedModel, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = torch.cat([losses(loaded, [row]) for row in range(3)])
    assert len(set(alone.tolist())) == 3
    monkeypatch.setattr(batch_module, "MAX_LOGITS", most)
    torch.testing.assert_close(losses(loaded, [0, 1, 2]), alone, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(losses(loaded, [2, 0]), alone[[2, 0]], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("policy", [policy() for policy in FAMILIES.values()], ids=list(FAMILIES))
@pytest.mark.parametrize("n_context", [1, 2, 5])
@pytest.mark.parametrize("ratio", [0.0, 0.5, 0.999])
def test_the_shortest_contexts_of_a_single_kv_cache_keep_exactly_their_entries(
    policy: EvictionPolicy, n_context: int, ratio: float
) -> None:
    """Down to none at all, where the loss is that of question and answer alone at their true positions."""
    one = LoadedModel("one", random_model(n_layers=1, n_heads=1, n_kv_heads=1), tokenizer=None)  # type: ignore[arg-type]
    context = tokens(n_context, 8)
    budgets = [Budgets.uniform(n_layers=1, n_kv_heads=1, ratio=ratio)]
    rows = compress_rows(one, prefill(one, [context], [policy]), budgets, [policy])
    n_kept = round((1 - ratio) * n_context)
    assert rows.kept_entries() == [n_kept]
    loss = answer_losses(one, rows, [[3]], [[4]])
    if n_kept in (0, n_context):
        ids = torch.tensor([[*context[: n_kept or 0], 3, 4]])
        positions = torch.arange(n_context + 2)[None, -ids.shape[1] :]
        with torch.inference_mode():
            plain = random_model(n_layers=1, n_heads=1, n_kv_heads=1, attention="sdpa")
            logits = plain(ids, position_ids=positions, use_cache=False).logits[:, -2]
        expected = torch.nn.functional.cross_entropy(logits, torch.tensor([4]))
        torch.testing.assert_close(loss[0], expected.float(), atol=1e-5, rtol=1e-5)
    assert torch.isfinite(loss).all()


@pytest.mark.parametrize("family", CLASSES)
@settings(max_examples=6, deadline=None)
@given(lengths=st.lists(st.integers(3, 40), min_size=1, max_size=3), chunk=st.integers(1, 40))
def test_chunks_keep_what_one_pass_keeps(family: str, lengths: list[int], chunk: int) -> None:
    # From three tokens on: between two, keydiff is undecided.
    loaded = LoadedModel("random", random_model(family), tokenizer=None)  # type: ignore[arg-type]
    contexts = [tokens(n, seed) for seed, n in enumerate(lengths)]
    policies = [policy() for policy in FAMILIES.values()]
    rows = [(policy, place) for policy in policies for place in range(len(contexts))]
    budgets = [Budgets.uniform(n_layers=loaded.n_layers, n_kv_heads=2, ratio=0.5)] * len(rows)
    found = {}
    for one in (None, chunk):
        full = prefill(loaded, contexts, policies, None, one)
        state = compress_rows(loaded, full, budgets, [policy for policy, _ in rows], [place for _, place in rows])
        read = [tokens(3, 9)] * len(rows)
        with torch.inference_mode():
            found[one] = (state.kept_entries(), state.read(loaded, read, logits_to_keep=3))
    assert found[chunk][0] == found[None][0]
    torch.testing.assert_close(found[chunk][1], found[None][1], rtol=0, atol=1e-10)


@pytest.mark.parametrize("n_context", [LIMIT - 9, LIMIT + 10])
@pytest.mark.parametrize("family", ["llama", "gemma3"])
@pytest.mark.parametrize("rope", BY_LENGTH)
def test_the_rotation_is_that_of_the_whole_text(rope: str, family: str, n_context: int) -> None:
    model = LoadedModel("random", rotating_model(rope, family), tokenizer=None)  # type: ignore[arg-type]
    context, question, answer = tokens(n_context, 0), QUESTIONS[1], ANSWERS[0]
    whole = torch.tensor([context + question + answer])
    prefill(model, [tokens(3 * LIMIT, 1)], [], 4 * LIMIT)  # another text, read before
    full = prefill(model, [context], [StreamingLLM()], whole.shape[1], 7)
    budgets = Budgets.uniform(n_layers=model.n_layers, n_kv_heads=2, ratio=0.0)
    found = answer_losses(model, compress_rows(model, full, [budgets], [StreamingLLM()]), [question], [answer])
    labels = whole.clone()
    labels[:, : -len(answer)] = -100
    with torch.inference_mode():
        expected = rotating_model(rope, family, attention="sdpa")(whole, labels=labels).loss
    torch.testing.assert_close(found[0], expected.float(), rtol=0, atol=1e-6)


def test_texts_of_different_rotations_are_not_read_together() -> None:
    model = LoadedModel("random", rotating_model("longrope"), tokenizer=None)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="contexts of 20 and of 40 tokens have different rotations"):
        prefill(model, [tokens(20, 0), tokens(40, 1)], [])
