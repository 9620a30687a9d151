"""The search picks by measured loss and is never worse than uniform on the calibration prompts."""

import numpy as np
import pytest
import torch
from tiny_models import random_model, random_tokens
from tqdm import tqdm

from baklava.allocate import Baklava, Uniform
from baklava.budgets import Budgets
from baklava.calibration import Prompt
from baklava.config import SearchConfig
from baklava.eviction import StreamingLLM
from baklava.generation import compressed, continuation_losses, prefill
from baklava.models.load import LoadedModel
from baklava.profile import Profile
from baklava.replay import Replay
from baklava.search import Candidate, _candidates, search

PROMPTS = [Prompt("none", index, "", "", "") for index in range(8)]


class FakeReplay:
    """Loss = distance of the first cache's share to a wanted one, plus a little that depends on the prompt."""

    def __init__(self, wanted: float):
        self.wanted = wanted
        self.asked: list[tuple[int, int]] = []

    def losses(self, prompt, budgets):
        self.asked.append((prompt.index, len(budgets)))
        return np.array([abs(one.shares[0, 0] - self.wanted) + 0.01 * prompt.index for one in budgets])


def candidate(share: float, name: str) -> Candidate:
    return Candidate(Uniform(name=name), Budgets.from_shares([[share, 1.0 - share]], ratio=0.5))


def run(replay, candidates):
    full = Budgets.uniform(n_layers=1, n_kv_heads=2, ratio=0.0)
    return search({0.5: candidates}, replay, PROMPTS, full=full, progress=tqdm(disable=True))


def test_the_lowest_loss_wins_and_has_seen_every_prompt():
    shares = [0.5, *np.linspace(0, 1, 40)]
    trials, loss_full = run(FakeReplay(0.8), [candidate(share, f"c{i}") for i, share in enumerate(shares)])
    winner = trials[0.5][0]
    assert winner.candidate.budgets.shares[0, 0] == pytest.approx(0.8, abs=0.02)
    assert len(winner.losses) == len(PROMPTS)
    assert loss_full == pytest.approx(0.2 + 0.035)


def test_uniform_is_kept_to_the_end_however_bad():
    trials, _ = run(FakeReplay(1.0), [candidate(0.0, "uniform"), *(candidate(0.9, f"c{i}") for i in range(20))])
    kept = next(trial for trial in trials[0.5] if trial.candidate.allocator.name == "uniform")
    assert len(kept.losses) == len(PROMPTS)


def test_the_winner_is_never_worse_than_uniform():
    trials, _ = run(FakeReplay(0.5), [candidate(0.5, "uniform"), *(candidate(0.1, f"c{i}") for i in range(9))])
    assert trials[0.5][0].candidate.allocator.name == "uniform"


def test_candidates_drop_out():
    replay = FakeReplay(0.3)
    run(replay, [candidate(share, f"c{i}") for i, share in enumerate([0.5, *np.linspace(0, 1, 39)])])
    assert [n for _, n in replay.asked] == [41, 41, 12, 12, 5, 5, 5, 5]  # the full cache, uniform and the best so far


def profile() -> Profile:
    rng = np.random.default_rng(0)
    heads = {name: rng.random((2, 2, 4)).astype(np.float32) for name in ("eviction_shift", "value_output_cosine")}
    return Profile("random", 2, heads, rng.random((2, 2)).astype(np.float32))


def test_equal_shares_are_tried_once_and_uniform_comes_first():
    settings = SearchConfig(n_candidates=8)
    found = _candidates(Baklava(name="baklava", slope=0.0, whole=0.0), profile(), 0.5, settings)
    assert found[0].allocator.family == "uniform"
    assert len({one.budgets.shares.tobytes() for one in found}) == len(found)


class FixedPrompt(Prompt):
    def token_ids(self, model):
        ids = random_tokens(36, seed=self.index)[0].tolist()
        return ids[:24], ids[24:31], ids[31:]


def test_replayed_losses_do_not_depend_on_the_batch_and_equal_the_model_s_own():
    loaded = LoadedModel("random", random_model(), tokenizer=None)
    budgets = [Budgets.uniform(n_layers=2, n_kv_heads=2, ratio=ratio) for ratio in (0.0, 0.3, 0.6, 0.9)]
    prompt = FixedPrompt("none", 3, "", "", "")
    together = Replay(loaded, StreamingLLM(), batch_rows=4).losses(prompt, budgets)
    in_pairs = Replay(loaded, StreamingLLM(), batch_rows=2).losses(prompt, budgets)
    np.testing.assert_allclose(together, in_pairs, atol=1e-6)
    context, question, answer = prompt.token_ids(loaded)
    ids = torch.tensor([context + question + answer])
    with torch.inference_mode():
        logits = loaded.model(ids, use_cache=False).logits[0, -len(answer) - 1 : -1].float()
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor(answer)).item()
    assert together[0] == pytest.approx(expected, abs=1e-5)


def test_a_shared_prefill_is_not_changed_by_its_rows():
    loaded = LoadedModel("random", random_model(), tokenizer=None)
    context, question, answer = FixedPrompt("none", 0, "", "", "").token_ids(loaded)
    full = prefill(loaded, [context], [StreamingLLM()])
    before = [layer.keys.clone() for layer in full.cache.layers]
    budgets = [Budgets.uniform(n_layers=2, n_kv_heads=2, ratio=ratio) for ratio in (0.0, 0.5)]
    continuation_losses(loaded, compressed(loaded, full, budgets, [StreamingLLM()] * 2), question, answer)
    assert all((layer.keys == keys).all() for layer, keys in zip(full.cache.layers, before, strict=True))
