"""Questions that come one after the other in one cache."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from engine_runs import config

from baklava.budgets import Budgets
from baklava.cache.budgeted import BudgetedCache
from baklava.errors import UserError
from baklava.evaluation.engine import Engine
from baklava.evaluation.prompt import Prompts
from baklava.evaluation.run import evaluate
from baklava.evaluation.samples import CellSpec
from baklava.evaluation.turns import Conversations
from baklava.eviction import KeyDiff
from baklava.experiment.components import ModelConfig
from baklava.experiment.jobs import EvaluateJob
from baklava.models.chat import find_chat_template
from baklava.models.load import LoadedModel, load_model
from baklava.tasks import NeedleInHaystack, Sample
from baklava.training.tokenizer import build_tokenizer

MODEL = {"name": "tiny-llama", "path": "reference:tiny-llama", "dtype": "float32"}
TASK = {"name": "needle", "family": "niah", "n_keys": 2, "n_questions": 2, "max_new_tokens": 10}


def answered(folder: Path, protocol: str, *, shards: int = 1, **task: Any) -> list[dict[str, Any]]:
    """The records of four samples, with the full cache and with keydiff at r = 0.6."""
    folder.mkdir(exist_ok=True)
    path = folder / "0.6.json"
    Budgets.uniform(n_layers=6, n_kv_heads=4, ratio=0.6).save(path)
    rows = []
    for shard in range(shards):
        job = EvaluateJob.model_validate(
            {
                "model": MODEL,
                "task": {**TASK, **task},
                "evictions": {"keydiff": {"name": "keydiff", "family": "keydiff"}},
                "evaluate": {"n_samples": 4, "length": 350, "protocol": protocol},
                "cells": [{"allocator": "uniform", "eviction": "keydiff", "ratio": 0.6, "path": str(path)}],
                "shard": {"index": shard, "of": shards},
                "store": str(folder / "store.lines"),
                "records": str(folder / f"records-{shard}.parquet"),
                "timings": str(folder / f"timings-{shard}.parquet"),
            }
        )
        assert evaluate(job) == 0
        rows += pq.read_table(job.records).to_pylist()
    return [{key: value for key, value in row.items() if value == value and key != "protocol"} for row in rows]


def test_records_name_the_turns_and_the_first_one_is_answered_as_a_question_by_itself(tmp_path: Path) -> None:
    turns, alone = answered(tmp_path / "turns", "turns"), answered(tmp_path / "alone", "question_agnostic")
    assert [row["turn"] for row in turns[::2]] == [1, 2, 1, 2] and {row["turn"] for row in alone} == {1}
    assert len({row["context"] for row in turns}) == 2
    assert [row["question"] for row in turns] == [row["question"] for row in alone]
    first = [row["sample"] for row in turns if row["turn"] == 1]
    assert [row for row in turns if row["sample"] in first] == [row for row in alone if row["sample"] in first]
    longer = [(row["peak_kv_bytes"], other["peak_kv_bytes"]) for row, other in zip(turns, alone, strict=True)]
    assert [own > other for own, other in longer] == [row["turn"] > 1 for row in turns]
    assert (
        answered(tmp_path / "shards", "turns", shards=3) == turns
    )  # of which one begins in the midst of a conversation


def test_one_question_for_each_context_is_what_it_is_without_turns(tmp_path: Path) -> None:
    one = {"n_questions": 1, "n_keys": 1}
    assert answered(tmp_path / "a", "turns", **one) == answered(tmp_path / "b", "question_agnostic", **one)


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return load_model(ModelConfig.model_validate(MODEL))


@pytest.fixture(scope="module")
def samples(loaded: LoadedModel) -> list[Sample]:
    task = NeedleInHaystack(name="needle", n_keys=3, n_questions=3, max_new_tokens=10)
    return [
        task.sample(split="train", seed=0, index=index, length=400, count_tokens=loaded.count_tokens)
        for index in range(3)
    ]


@pytest.mark.parametrize("decoding", ["grow", "fixed"])
def test_the_last_turn_is_what_one_cache_answers_that_reads_turn_after_turn(
    loaded: LoadedModel, samples: list[Sample], decoding: str
) -> None:
    task = NeedleInHaystack(name="needle", max_new_tokens=10)
    settings = config(protocol="turns", decoding=decoding)
    engine = Engine(loaded, task, settings)
    budgets = Budgets.uniform(n_layers=6, n_kv_heads=4, ratio=0.5)
    cell = CellSpec("uniform", "keydiff", 0.5, budgets, KeyDiff())
    tokens = Prompts(loaded.name, loaded.tokenizer, task, settings).tokens(samples[2], samples[:2])
    (record,) = next(engine.answer([engine.encode(samples[2], [cell], tokens, turn=3)]))

    asked = [sample.question + sample.answer_prefix for sample in samples]
    answers = [task.reference_answer(sample) for sample in samples]
    cache = BudgetedCache(loaded.model.config, budgets, KeyDiff(), decoding=decoding, compress_above=0)  # type: ignore[arg-type]
    cache.prefill(loaded.model, torch.tensor([loaded.encode(samples[0].context, begin=True)]))

    def read(text: str, *, step: int) -> torch.Tensor:
        ids = torch.tensor([loaded.encode(text)])
        return [loaded.model(some, past_key_values=cache).logits[0, -1] for some in ids.split(step, dim=1)][-1]

    with torch.inference_mode():
        for question, answer, between in zip(asked, answers, ("", "\n"), strict=False):
            read(between + question, step=1000)
            read(answer, step=1)
        logits = read("\n" + asked[2], step=1000)
        made: list[int] = []
        while len(made) < 10 and int(logits.argmax()) != loaded.tokenizer.eos_token_id:
            made.append(int(logits.argmax()))
            logits = loaded.model(torch.tensor([made[-1:]]), past_key_values=cache).logits[0, -1]
    assert loaded.decode(made).startswith(record.prediction) and record.prediction
    after = len(tokens.question) + min(len(made), 9)
    entry = 2 * loaded.model.config.head_dim * 4
    n_entries = int(cache.kept_entries().sum())
    assert record.peak_kv_bytes == entry * (n_entries + (0 if decoding == "fixed" else 24 * after))
    assert (record.turn, record.question) == (3, samples[2].question)


def test_a_template_has_its_own_way_from_an_answer_to_the_next_question() -> None:
    tokenizer = build_tokenizer()
    tokenizer.chat_template = (
        "{% for message in messages %}<{{ message.role }}>{{ message.content | trim }}</{{ message.role }}>{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    task = NeedleInHaystack(name="needle")
    one = Sample(index=0, context="C. ", question="Q?", answer_prefix=" A:", answers=("7",), max_new_tokens=1)
    texts = {
        "question": "<user>C. |Q?</user><assistant> A: 7.</assistant><user>R?</user><assistant> A:",
        "prompt": "<user>C. |Q? A:</user><assistant> 7.</assistant><user>R? A:</user><assistant>",
        "none": "C. |Q? A: 7. R? A:",
    }
    for chat, text in texts.items():
        earlier = replace(one, chat=chat)  # type: ignore[arg-type]
        later = replace(earlier, index=1, question="R?")
        prompts = Prompts("mine", tokenizer, task, config(protocol="turns"))
        tokens = prompts.tokens(later, [earlier])
        assert tokens.context + tokens.question == tokenizer.encode(text.replace("|", ""), add_special_tokens=False)
        assert sum(tokens.steps) == len(tokens.question) and tokens.steps.count(1) >= 2  # the answer's tokens
        assert tokens.question[: tokens.steps[0]] == prompts.tokens(earlier).question
    tokenizer.chat_template = "{{ messages[0].content }}"
    with pytest.raises(UserError, match=r"changes a text of several turns; set evaluate\.chat_template=false"):
        find_chat_template(tokenizer).next_turn("R?")  # type: ignore[union-attr]


def test_a_conversation_is_what_comes_before_with_the_same_context() -> None:
    contexts = ["a", "a", "b", None, "b", "b"]

    def make(index: int) -> Sample:
        if contexts[index] is None:
            raise UserError("no such sample")
        return Sample(index=index, context=contexts[index], question="", answer_prefix="", answers=(), max_new_tokens=1)  # type: ignore[arg-type]

    expected = {0: [], 1: [0], 2: [], 4: [], 5: [4]}
    for first in expected:
        conversations = Conversations(make)
        for index in (index for index in expected if index >= first):
            assert [sample.index for sample in conversations.earlier(make(index))] == expected[index]
