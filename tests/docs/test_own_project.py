"""The Python of docs/own_project.md, run on a small model: three ways to ask several questions, and several turns."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import random_model, random_tokens

from baklava import BudgetedCache, Budgets

PAGE = Path(__file__).parents[2] / "docs" / "own_project.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), flags=re.MULTILINE | re.DOTALL)


@pytest.fixture
def names() -> dict[str, Any]:
    """What the page's code takes as given; the cache has read the context."""
    model = random_model("llama")
    model.set_attn_implementation("baklava")
    names = {
        "model": model,
        "budgets": Budgets.uniform(n_layers=2, n_kv_heads=2, ratio=0.5),
        "context": random_tokens(40),
        "questions": [random_tokens(3, seed=1), random_tokens(5, seed=2)],
        "answers": [],
        "BudgetedCache": BudgetedCache,
        "torch": torch,
    }
    exec(BLOCKS[0], names)
    assert int(names["cache"].kept_entries().max()) == 20
    return names


def answer_alone(names: dict[str, Any], *parts: torch.Tensor) -> torch.Tensor:
    """The answer to the last part with a cache of its own, which reads one part after another."""
    model, cache = names["model"], BudgetedCache(names["model"].config, names["budgets"])
    cache.prefill(model, names["context"])
    ids = names["context"]
    for part in parts:
        ids = torch.cat([ids, part], 1)
        made = ids
        for _ in range(8):
            with torch.no_grad():
                logits = model(made[:, cache.get_seq_length() :], past_key_values=cache).logits
            made = torch.cat([made, logits[:, -1].argmax(-1, keepdim=True)], 1)
        answer, ids = made[:, ids.shape[1] :], made
    return answer


@pytest.mark.parametrize("way", [1, 2, 3], ids=["copy", "crop", "repeat"])
def test_each_question_is_answered_as_if_it_were_the_only_one(way: int, names: dict[str, Any]) -> None:
    exec(BLOCKS[way], names)
    assert [answer.tolist() for answer in names["answers"]] == [
        answer_alone(names, question).tolist() for question in names["questions"]
    ]
    assert names["answers"][0].tolist() != names["answers"][1].tolist()


def test_a_second_turn_sees_the_first(names: dict[str, Any]) -> None:
    exec(BLOCKS[4], names)
    expected = answer_alone(names, *names["questions"])
    assert names["ids"][:, -8:].tolist() == expected.tolist()
    assert expected.tolist() != answer_alone(names, names["questions"][1]).tolist()
