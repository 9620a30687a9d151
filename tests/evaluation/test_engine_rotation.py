"""A record depends on its sample alone where the rotation depends on the length of the text."""

from __future__ import annotations

import copy

import pytest
import torch
from engine_runs import TASK, config, records, sample
from rope_models import BY_LENGTH
from transformers import LlamaForCausalLM, PreTrainedModel

from baklava.budgets import Budgets
from baklava.evaluation.engine import Engine
from baklava.evaluation.samples import CellSpec, batches
from baklava.eviction import POLICIES
from baklava.experiment.components import ModelConfig
from baklava.models.load import LoadedModel, load_model

LIMIT = 400
LENGTHS = (520, 300, 520, 390, 410)  # of the texts, about; on both sides of the limit
N_NEW = TASK.max_new_tokens


def rotating(rope: str, *, attention: str = "baklava") -> LoadedModel:
    """A trained model whose rotation is another one beyond `LIMIT` tokens, as new."""
    trained = load_model(ModelConfig(name="tiny-llama", path="reference:tiny-llama", dtype="float32"))
    changed = copy.deepcopy(trained.model.config)
    changed.max_position_embeddings = LIMIT if rope == "dynamic" else 4 * LIMIT
    changed.rope_parameters = {**changed.rope_parameters, "rope_type": rope, **BY_LENGTH[rope]}
    if rope == "longrope":
        n = changed.head_dim // 2
        long = [1.0 + 3.0 * i / n for i in range(n)]
        changed.rope_parameters |= {
            "short_factor": [1.0] * n,
            "long_factor": long,
            "original_max_position_embeddings": LIMIT,
        }
    model = LlamaForCausalLM(changed)
    model.load_state_dict(trained.model.state_dict())
    model.set_attn_implementation(attention)
    return LoadedModel("tiny-llama", model.eval(), trained.tokenizer)


def cells_for(loaded: LoadedModel) -> list[CellSpec]:
    shape = {"n_layers": loaded.n_layers, "n_kv_heads": loaded.n_kv_heads}
    compressed = [
        CellSpec("uniform", name, 0.5, Budgets.uniform(**shape, ratio=0.5), POLICIES[name]())
        for name in ("snapkv", "expected_attention")
    ]
    return [CellSpec.full(**shape), *compressed]


@pytest.mark.parametrize("rope", BY_LENGTH)
def test_records_do_not_depend_on_order_batches_or_chunks(rope: str) -> None:
    samples = [sample(rotating(rope), index, length=length) for index, length in enumerate(LENGTHS)]
    alone = {}
    for one in samples:
        loaded = rotating(rope)
        cells = cells_for(loaded)
        alone |= records(loaded, cells, [one], batch_rows=len(cells))
    assert len(alone) == len(cells) * len(samples)
    loaded = rotating(rope)
    assert records(loaded, cells, samples[::-1], batch_rows=3, prefill_chunk=100) == alone
    few = {key: value for key, value in alone.items() if key[1] in {cell.label for cell in cells[:2]}}
    assert records(loaded, cells[:2], sorted(samples, key=lambda one: len(one.context)), batch_rows=16) == few


@pytest.mark.parametrize("rope", BY_LENGTH)
def test_texts_of_different_rotations_are_not_read_together(rope: str) -> None:
    loaded = rotating(rope)
    engine, cells = Engine(loaded, TASK, config()), cells_for(loaded)[:1]
    works = [engine.encode(sample(loaded, index, length=length), cells) for index, length in enumerate(LENGTHS)]
    for batch in batches(works, 64):
        assert len({work.rotated_for for work in batch}) == 1
        lengths = {len(work.context) + len(work.question) + N_NEW - 1 for work in batch}
        assert len(lengths) == 1 or rope == "longrope" or max(lengths) <= LIMIT
        assert len({length > LIMIT for length in lengths}) == 1


@pytest.mark.parametrize("rope", BY_LENGTH)
def test_the_full_cell_answers_as_passes_over_the_whole_text(rope: str) -> None:
    loaded = rotating(rope)
    cells = cells_for(loaded)[:1]
    samples = [sample(loaded, index, length=length) for index, length in enumerate(LENGTHS[-3:])]
    found = records(loaded, cells, samples)
    plain = rotating(rope, attention="sdpa").model
    for one in samples:
        work = Engine(loaded, TASK, config()).encode(one, cells)
        tokens = greedy(plain, work.context + work.question)
        assert found[one.index, "full"].prediction == loaded.decode(tokens)


def greedy(model: PreTrainedModel, ids: list[int]) -> list[int]:
    """Each token from one pass over as many tokens as the text may take; what comes later cannot be seen."""
    tokens: list[int] = []
    while len(tokens) < N_NEW:
        text = [*ids, *tokens]
        padded = torch.tensor([text + [0] * (len(ids) + N_NEW - 1 - len(text))])
        with torch.inference_mode():
            token = int(model(padded, use_cache=False).logits[0, len(text) - 1].argmax())
        if token == model.generation_config.eos_token_id:
            break
        tokens.append(token)
    return tokens
