"""Rows that are decoded together: each answers as if it were alone, whenever it came and whoever left."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import WINDOWED, random_model, random_tokens

from baklava.budgets import Budgets
from baklava.eviction import SnapKV, StreamingLLM
from baklava.inference import decoding
from baklava.inference.batch import compress_rows, prefill
from baklava.inference.decoding import DecodingBatch, DecodingRow
from baklava.models.load import LoadedModel
from baklava.training.tokenizer import build_tokenizer

NEWLINE = 7


class Tokens:
    """A tokenizer that knows the new line alone."""

    eos_token_id = None

    def encode(self, text: str, **_: Any) -> list[int]:
        return {"\n": [NEWLINE]}[text]


FAMILIES = ("llama", *WINDOWED)
MODELS = {family: LoadedModel(family, random_model(family), Tokens()) for family in FAMILIES}  # type: ignore[arg-type]


def tokens(n: int, seed: int) -> list[int]:
    return random_tokens(n, seed=seed)[0].tolist()


CONTEXTS = [tokens(30, 0), tokens(41, 1), tokens(4, 2), tokens(30, 3), tokens(18, 4)]
QUESTIONS = [tokens(1, 5), tokens(5, 6), tokens(1, 7), tokens(3, 8), tokens(9, 9)]
LENGTHS = [12, 3, 25, 8, 1]
RATIOS = [0.0, 0.5, 0.3, 0.8, 0.6]
POLICIES = [StreamingLLM(), SnapKV(), StreamingLLM(), SnapKV(), StreamingLLM()]
ROWS = range(len(CONTEXTS))


def add(
    decoding_batch: DecodingBatch[int], loaded: LoadedModel, rows: list[int], one_line: bool = False
) -> list[DecodingRow[int]]:
    full = prefill(loaded, [CONTEXTS[row] for row in rows], [POLICIES[row] for row in rows])
    n_layers = 1 if loaded.name in WINDOWED else 2
    budgets = [Budgets.uniform(n_layers=n_layers, n_kv_heads=2, ratio=RATIOS[row]) for row in rows]
    state = compress_rows(loaded, full, budgets, [POLICIES[row] for row in rows], list(range(len(rows))))
    return decoding_batch.add_rows(
        state,
        [QUESTIONS[row] for row in rows],
        [DecodingRow(row, LENGTHS[row], one_line and row == 0) for row in rows],
    )


def answers(loaded: LoadedModel, groups: list[list[int]], steps: list[int], **more: Any) -> dict[int, list[int]]:
    """Of rows that come in groups, with so many steps after each."""
    decoding_batch: DecodingBatch[int] = DecodingBatch(loaded)
    finished = []
    for group, n in zip(groups, steps, strict=True):
        finished += add(decoding_batch, loaded, group, **more)
        for _ in range(n):
            finished += decoding_batch.step() if decoding_batch.active else []
    while decoding_batch.active:
        finished += decoding_batch.step()
    assert all(row.finished and row.seconds > 0 for row in finished)
    assert len({row.request for row in finished}) == len(finished)
    return {row.request: row.tokens for row in finished}


@pytest.fixture(scope="module")
def alone() -> dict[str, dict[int, list[int]]]:
    return {family: {row: answers(loaded, [[row]], [0])[row] for row in ROWS} for family, loaded in MODELS.items()}


@settings(max_examples=30, deadline=None)
@given(
    family=st.sampled_from(FAMILIES),
    order=st.permutations(ROWS),
    cuts=st.lists(st.booleans(), min_size=len(ROWS) - 1, max_size=len(ROWS) - 1),
    steps=st.lists(st.integers(0, 9), min_size=len(ROWS), max_size=len(ROWS)),
    part=st.sampled_from([0.0, 0.25, 1.0]),
)
def test_a_row_answers_as_if_alone(
    alone: dict[str, dict[int, list[int]]],
    family: str,
    order: list[int],
    cuts: list[bool],
    steps: list[int],
    part: float,
) -> None:
    groups = [[order[0]]]
    for row, cut in zip(order[1:], cuts, strict=True):
        if cut or family in WINDOWED:  # a window would count the padding before a shorter question
            groups.append([row])
        else:
            groups[-1].append(row)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding, "FINISHED_FRACTION", part)
        found = answers(MODELS[family], groups, steps[: len(groups)])
    assert found == alone[family]
    assert [len(found[row]) for row in ROWS] == LENGTHS


def test_a_row_of_one_line_ends_at_the_new_line_and_does_not_begin_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = MODELS["llama"]
    free = answers(loaded, [[0, 1]], [0])
    place = next(i for i in range(1, LENGTHS[0]) if free[0][i] not in free[0][:i])
    monkeypatch.setattr(Tokens, "encode", lambda self, text, **_: [free[0][place]])
    assert answers(loaded, [[0, 1]], [0], one_line=True) == {0: free[0][:place], 1: free[1]}
    monkeypatch.setattr(Tokens, "encode", lambda self, text, **_: [free[0][0]])
    other = answers(loaded, [[0, 1]], [0], one_line=True)
    assert other[1] == free[1]
    assert other[0] and free[0][0] not in other[0]


@pytest.mark.parametrize("ends", ["generation", "several", "tokenizer"])
def test_a_row_ends_at_every_end_token_and_leaves_it_out(monkeypatch: pytest.MonkeyPatch, ends: str) -> None:
    loaded = MODELS["llama"]
    free = answers(loaded, [[0]], [0])[0]
    place = next(i for i in range(1, LENGTHS[0]) if free[i] not in free[:i])
    if ends == "tokenizer":
        monkeypatch.setattr(Tokens, "eos_token_id", free[place])
    else:
        end = free[place] if ends == "generation" else [58, free[place]]
        monkeypatch.setattr(loaded.model.generation_config, "eos_token_id", end)
    assert answers(loaded, [[0]], [0])[0] == free[:place]


def test_end_tokens_are_those_of_generation_of_the_tokenizer_and_of_the_chat_template() -> None:
    tokenizer = build_tokenizer()
    model = random_model()
    loaded = LoadedModel("mine", model, tokenizer)
    own, answer = tokenizer.eos_token_id, "{{ messages[-1].content }}"
    assert decoding._stop_tokens(loaded) == {own}
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|eot|>", "<|more|>"]})
    end, more = tokenizer.convert_tokens_to_ids(["<|eot|>", "<|more|>"])
    for template, expected in (
        (answer + "<|eot|>\n<|more|>", {own, end}),
        (answer + "\n<|eot|>", {own, end}),
        (answer + "\nUser:", {own}),
        ("{{ raise_exception('no assistant here') }}", {own}),
    ):
        tokenizer.chat_template = template
        assert decoding._stop_tokens(loaded) == expected
    tokenizer.chat_template = None
    model.generation_config.eos_token_id = [end, more]
    tokenizer.eos_token = None
    assert decoding._stop_tokens(loaded) == {end, more}


def test_rows_join_only_what_has_read_on() -> None:
    loaded = MODELS["llama"]
    full = prefill(loaded, CONTEXTS[:1], [StreamingLLM()])
    budgets = [Budgets.uniform(n_layers=2, n_kv_heads=2, ratio=0.5)]
    first, second = (compress_rows(loaded, full, budgets, [StreamingLLM()]) for _ in range(2))
    with pytest.raises(ValueError, match="rows join others once both have read on after their context"):
        first.append_rows(second)


def test_without_rows_nothing_is_read() -> None:
    decoding_batch: DecodingBatch[int] = DecodingBatch(MODELS["llama"])
    full = prefill(MODELS["llama"], CONTEXTS[:1], [StreamingLLM()])
    assert decoding_batch.step() == []
    budgets = [Budgets.uniform(n_layers=2, n_kv_heads=2, ratio=0.5)]
    assert decoding_batch.add_rows(compress_rows(MODELS["llama"], full, budgets, [StreamingLLM()]), [], []) == []
    assert (decoding_batch.step(), decoding_batch.active) == ([], [])
