"""The harness' model answers as `BudgetedCache` does row by row, whatever the batch size.

`make test-lm-eval` runs this in an environment of its own.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import lm_eval
import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.tasks import TaskManager
from transformers import AutoModelForCausalLM, AutoTokenizer

from baklava import BudgetedCache, Budgets, reference_model_path
from baklava.errors import UserError
from baklava.evaluation.harness import BudgetedLM
from baklava.tasks import FAMILIES

FOLDER = reference_model_path("tiny-llama")


def write_budgets(path: Path) -> Path:
    rng = random.Random(0)
    config = json.loads((FOLDER / "config.json").read_text())
    shares = [[rng.random() for _ in range(config["num_key_value_heads"])] for _ in range(config["num_hidden_layers"])]
    Budgets.from_shares(shares).save(path)
    return path


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def samples(tokenizer: Any) -> list[tuple[str, str]]:
    """Prompts of different lengths, and their answers."""
    task = FAMILIES["niah"](name="niah_single_1")
    count = lambda text: len(tokenizer(text)["input_ids"])  # noqa: E731
    made = [task.sample(split="evaluation", seed=0, index=i, length=300 + 20 * i, count_tokens=count) for i in range(4)]
    return [(one.context + one.question + one.answer_prefix, f" {one.answers[0]}") for one in made]


@pytest.fixture(scope="module")
def budgets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_budgets(tmp_path_factory.mktemp("budgets") / "budgets.json")


@pytest.fixture(scope="module")
def model() -> Any:
    model = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32)
    model.set_attn_implementation("baklava")
    return model


def cache_of(model: Any, budgets: Path, ids: torch.Tensor) -> BudgetedCache:
    cache = BudgetedCache(model, Budgets.load(budgets), eviction="keydiff", compress_above=0)
    cache.prefill(model, ids[:, :-1])
    return cache


def arguments(budgets: Path) -> dict[str, Any]:
    own = {"budgets": str(budgets), "eviction": "keydiff", "compress_above": 0}
    return {"pretrained": "reference:tiny-llama", "dtype": "float32", "device": "cpu", **own}


@pytest.mark.parametrize("batch", [1, 3])
def test_a_task_of_generated_answers(
    batch: int, samples: Any, budgets: Path, model: Any, tokenizer: Any, tmp_path: Path
) -> None:
    rows = [json.dumps({"prompt": prompt, "answer": answer.strip()}) for prompt, answer in samples]
    (tmp_path / "data.jsonl").write_text("\n".join(rows))
    task = {
        "task": "local",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "data.jsonl")}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{prompt}}",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 10, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    }
    (tmp_path / "local.yaml").write_text(json.dumps(task))
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    results = lm_eval.simple_evaluate(
        model="baklava", model_args=arguments(budgets), tasks=["local"], batch_size=batch, task_manager=manager
    )
    said = [sample["resps"][0][0] for sample in sorted(results["samples"]["local"], key=lambda one: one["doc_id"])]
    expected, kept, total = [], 0, 0
    for prompt, _ in samples:
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        cache = cache_of(model, budgets, ids)
        kept, total = kept + int(cache.kept_entries().sum()), total + cache.kept_entries().numel() * (ids.shape[1] - 1)
        written = model.generate(ids, past_key_values=cache, max_new_tokens=10, do_sample=False)[0, ids.shape[1] :]
        expected.append(tokenizer.decode(written, skip_special_tokens=True).partition("\n")[0])
    assert said == expected
    score = sum(one == answer.strip() for one, (_, answer) in zip(expected, samples, strict=True)) / len(samples)
    assert results["results"]["local"]["exact_match,none"] == score
    assert results["config"]["baklava"]["kept_fraction"] == pytest.approx(kept / total)
    assert results["config"]["baklava"]["kv_bytes"] > 0


def requests_of(pairs: Any) -> list[Instance]:
    return [Instance("loglikelihood", {}, pair, index) for index, pair in enumerate(pairs)]


@pytest.mark.parametrize("batch", [1, 4])
def test_likelihoods_of_continuations(batch: int, samples: Any, budgets: Path, model: Any, tokenizer: Any) -> None:
    pairs = [*samples, (samples[0][0], " a wrong and a longer answer")]
    found = BudgetedLM(**arguments(budgets), batch_size=batch).loglikelihood(requests_of(pairs))
    for (prompt, answer), (score, greedy) in zip(pairs, found, strict=True):
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        whole = tokenizer(prompt + answer, return_tensors="pt")["input_ids"]
        cache = cache_of(model, budgets, ids)
        length = ids.shape[1]
        with torch.inference_mode():
            logits = model(whole[:, length - 1 : -1], past_key_values=cache).logits[0].log_softmax(-1)
        expected = logits.gather(1, whole[0, length:, None])
        assert score == pytest.approx(float(expected.sum()), abs=1e-3)
        assert greedy == bool((logits.argmax(-1) == whole[0, length:]).all())


def test_what_cannot_be_compressed_is_refused(budgets: Path, tmp_path: Path) -> None:
    lm = BudgetedLM(**arguments(budgets))
    with pytest.raises(UserError, match="without a context"):
        lm.loglikelihood_rolling([])
    with pytest.raises(UserError, match="no context that could be compressed"):
        lm.loglikelihood(requests_of([("", "a text of its own")]))
    with pytest.raises(UserError, match=r"budgets for ratio .*, 0\.1 is asked for"):
        BudgetedLM(**arguments(budgets), ratio=0.1)
