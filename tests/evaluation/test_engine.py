"""Answers do not depend on what is computed together; entries and bytes are the true ones."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from engine_runs import TASK, config, records, sample
from hypothesis import given, settings
from hypothesis import strategies as st

from baklava.budgets import Budgets
from baklava.cache.budgeted import BudgetedCache
from baklava.errors import UserError
from baklava.evaluation import scheduler as scheduler_module
from baklava.evaluation.engine import Engine
from baklava.evaluation.samples import MAX_PADDING, MAX_SAMPLES_TOGETHER, CellSpec, EncodedSample, batches
from baklava.eviction import POLICIES, KVzip
from baklava.experiment.components import ModelConfig
from baklava.inference.batch import BatchState
from baklava.models.load import LoadedModel, load_model
from baklava.tasks import Sample
from baklava.tasks.perplexity import Continuation


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return load_model(ModelConfig(name="tiny-llama", path="reference:tiny-llama", dtype="float32"))


@pytest.fixture(scope="module")
def cells(loaded: LoadedModel) -> list[CellSpec]:
    shape = {"n_layers": loaded.n_layers, "n_kv_heads": loaded.n_kv_heads}
    methods = [("streaming_llm", 0.3), ("streaming_llm", 0.9), ("snapkv", 0.6), ("h2o", 0.6), ("adakv", 0.8)]
    return [
        CellSpec.full(**shape),
        *(
            CellSpec("uniform", name, ratio, Budgets.uniform(**shape, ratio=ratio), POLICIES[name]())
            for name, ratio in methods
        ),
    ]


def sizes_of(monkeypatch: pytest.MonkeyPatch, name: str, place: int) -> list[int]:
    """Lengths of the argument at `place` in the engine's calls of a function, as they come."""
    sizes: list[int] = []
    whole = getattr(scheduler_module, name)
    monkeypatch.setattr(scheduler_module, name, lambda *a, **k: sizes.append(len(a[place])) or whole(*a, **k))
    return sizes


def test_answers_do_not_depend_on_batches_chunks_or_order(loaded: LoadedModel, cells: list[CellSpec]) -> None:
    cells = [*cells[:4], replace(cells[4], policy=KVzip(chunk=256)), *cells[5:]]
    samples = [sample(loaded, index, length=length) for index, length in enumerate((400, 392, 400, 390))]
    alone = records(loaded, cells, samples, batch_rows=1)
    assert len(alone) == len(cells) * len(samples)
    assert records(loaded, cells[::-1], samples, batch_rows=4, prefill_chunk=150) == alone
    assert records(loaded, cells[2:], samples[::-1], batch_rows=64) == {
        key: value for key, value in alone.items() if key[1] in {cell.label for cell in cells[2:]}
    }


def test_samples_of_unequal_length_are_read_together_where_cells_are_few(
    loaded: LoadedModel, cells: list[CellSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = sizes_of(monkeypatch, "prefill", 1)
    samples = [sample(loaded, index, length=length) for index, length in enumerate((520, 490, 300, 300, 310))]
    together = records(loaded, cells[:2], samples, batch_rows=6)
    assert sizes == [2, 3]
    assert together == records(loaded, cells[:2], samples, batch_rows=1)


def test_little_memory_splits_the_rows_and_changes_nothing(loaded: LoadedModel, cells: list[CellSpec]) -> None:
    samples = [sample(loaded, 5)]
    plenty = records(loaded, cells, samples)
    assert records(loaded, cells, samples, memory_gib=1e-9) == plenty


def test_a_batch_that_does_not_fit_is_halved_until_it_does(
    loaded: LoadedModel, cells: list[CellSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[tuple[str, int]] = []
    whole = {"prefill": scheduler_module.prefill, "compress_rows": scheduler_module.compress_rows}

    def limited(what: str, most: int) -> Any:
        def run(*arguments: Any, **more: Any) -> Any:
            n = len(arguments[1] if what == "prefill" else arguments[2])
            sizes.append((what, n))
            if n > most:
                raise torch.OutOfMemoryError
            return whole[what](*arguments, **more)

        return run

    samples = [sample(loaded, index) for index in range(2)]
    expected = records(loaded, cells, samples)
    monkeypatch.setattr(scheduler_module, "prefill", limited("prefill", 1))
    monkeypatch.setattr(scheduler_module, "compress_rows", limited("compress_rows", 2))
    assert records(loaded, cells, samples) == expected
    alone = [("prefill", 1), *[("compress_rows", 1)] * 6]
    one_sample = [("prefill", 1), ("compress_rows", 6), ("prefill", 1), ("compress_rows", 3), *alone]
    assert sizes == [("prefill", 2), *one_sample, *one_sample]


def test_a_context_that_does_not_fit_is_read_in_chunks_that_do(
    loaded: LoadedModel, cells: list[CellSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    chunks: list[int | None] = []
    whole = scheduler_module.prefill

    def limited(*arguments: Any) -> Any:
        chunks.append(arguments[4])
        if arguments[4] is None or arguments[4] > 100:
            raise torch.OutOfMemoryError
        return whole(*arguments)

    samples = [sample(loaded, index) for index in range(2)]
    expected = records(loaded, cells, samples)
    n = max(len(Engine(loaded, TASK, config()).encode(one, cells).context) for one in samples)
    monkeypatch.setattr(scheduler_module, "prefill", limited)
    monkeypatch.setattr(scheduler_module, "MIN_CHUNK", n // 4)
    assert records(loaded, cells, samples, batch_rows=1) == expected
    assert chunks == [None, n // 2, n // 4, n // 4]
    monkeypatch.setattr(scheduler_module, "MIN_CHUNK", n // 2)
    failed = [
        one
        for some in Engine(loaded, TASK, config()).answer([Engine(loaded, TASK, config()).encode(samples[0], cells)])
        for one in some
    ]
    assert [one.failed for one in failed] == [
        f"{n} tokens of context do not fit into memory; lower evaluate.length"
    ] * 6


def test_no_answer_is_lost_where_memory_runs_out_as_rows_leave_or_join(
    loaded: LoadedModel, cells: list[CellSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = [sample(loaded, index) for index in range(3)]
    expected = records(loaded, cells, samples)
    for name in ("select_rows", "append_rows"):
        whole = getattr(BatchState, name)
        calls = 0

        def scarce(self: BatchState, other: Any, whole: Any = whole) -> None:
            nonlocal calls
            calls += 1
            if calls % 2:
                raise torch.OutOfMemoryError
            whole(self, other)

        with monkeypatch.context() as patch:
            patch.setattr(BatchState, name, scarce)
            assert records(loaded, cells, samples, batch_rows=8) == expected
        assert calls > 1


def test_rows_with_sliding_windows_begin_with_questions_of_one_length(
    loaded: LoadedModel, cells: list[CellSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = sizes_of(monkeypatch, "compress_rows", 2)
    samples = [sample(loaded, index) for index in range(2)]
    works = [EncodedSample(one, [0] * 20, [0] * n, cells[:2]) for one, n in zip(samples, (3, 4), strict=True)]
    for windows, expected in ((False, [4]), (True, [2, 2])):
        sizes.clear()
        monkeypatch.setattr(LoadedModel, "has_windows", windows)
        assert sum(map(len, Engine(loaded, TASK, config()).answer(works))) == 4
        assert sizes == expected


def test_entries_and_bytes_are_those_of_the_ratio(loaded: LoadedModel, cells: list[CellSpec]) -> None:
    found = records(loaded, cells, [sample(loaded, 0)])
    for cell in cells:
        record = found[0, cell.label]
        total = loaded.n_layers * loaded.n_kv_heads * record.context_tokens
        assert record.total_entries == total
        assert record.kept_entries == round((1 - cell.ratio) * total)
        entry = 2 * loaded.model.config.head_dim * 4
        assert record.kv_bytes == record.kept_entries * entry
        assert record.kv_bytes_full == total * entry


def test_the_full_cell_answers_as_plain_generate(loaded: LoadedModel, cells: list[CellSpec]) -> None:
    one = sample(loaded, 3)
    ids = loaded.encode(one.context, begin=True) + loaded.encode(one.question + one.answer_prefix)
    made = loaded.model.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False)[0, len(ids) :]
    expected = loaded.tokenizer.decode(made, skip_special_tokens=True)
    assert records(loaded, cells[:1], [one])[3, "full"].prediction == expected


def test_question_aware_compresses_the_question_too(loaded: LoadedModel) -> None:
    works = [
        Engine(loaded, TASK, config(protocol=protocol)).encode(sample(loaded, 0), [])
        for protocol in ("question_agnostic", "question_aware")
    ]
    assert works[0].context + works[0].question == works[1].context + works[1].question
    assert len(works[1].context) > len(works[0].context)


def test_something_is_left_to_read_after_compression(loaded: LoadedModel) -> None:
    empty = Sample(
        index=0, context="The sky is blue.", question=" Why?", answer_prefix="", answers=(), max_new_tokens=1
    )
    work = Engine(loaded, TASK, config(protocol="question_aware")).encode(empty, [])
    assert len(work.question) == 1
    assert work.context + work.question == loaded.encode("The sky is blue. Why?", begin=True)


@settings(max_examples=80)
@given(st.lists(st.tuples(st.integers(1, 60), st.integers(1, 8)), max_size=30), st.integers(1, 20))
def test_batches_keep_order_rows_and_padding_within_bounds(sizes: list[tuple[int, int]], rows: int) -> None:
    works = [EncodedSample(None, [i] * length, [0], [None] * cells) for i, (length, cells) in enumerate(sizes)]  # type: ignore[arg-type, list-item]
    made = list(batches(works, rows))
    assert [one for batch in made for one in batch] == works
    for batch in made:
        lengths = [len(one.context) for one in batch]
        assert len(batch) == 1 or sum(len(one.cells) for one in batch) <= rows
        assert len(batch) <= MAX_SAMPLES_TOGETHER
        padded = len(batch) * max(lengths)
        assert padded - sum(lengths) <= MAX_PADDING * padded


def short(index: int, context: str, question: str) -> Sample:
    return Sample(index=index, context=context, question=question, answer_prefix="", answers=("1",), max_new_tokens=1)


@pytest.mark.parametrize("protocol", ["question_agnostic", "question_aware"])
def test_the_shortest_samples_are_answered(loaded: LoadedModel, cells: list[CellSpec], protocol: str) -> None:
    samples = [short(0, "a", " b"), short(1, "The sky is blue.", ""), short(2, "a", " b")]
    found = records(loaded, cells, samples, protocol=protocol)
    assert len(found) == len(samples) * len(cells)
    for record in found.values():
        assert 0 <= record.kept_entries <= record.total_entries
    assert found[0, "full"].total_entries == loaded.n_layers * loaded.n_kv_heads
    alone = records(loaded, cells[:1], samples[:1], protocol=protocol)
    assert alone == {(0, "full"): found[0, "full"]}


def test_without_samples_or_cells_there_are_no_answers(loaded: LoadedModel, cells: list[CellSpec]) -> None:
    assert records(loaded, cells, []) == {}
    assert records(loaded, [], [sample(loaded, 0)]) == {}
    engine = Engine(loaded, TASK, config())
    works = [engine.encode(sample(loaded, index), cells[:n]) for index, n in enumerate((0, 1, 0))]
    assert [record.sample for records in engine.answer(works) for record in records] == [1]


@pytest.mark.parametrize(("context", "question"), [("", "Why?"), ("", ""), ("a", "")])
def test_a_sample_without_a_context_is_refused(loaded: LoadedModel, context: str, question: str) -> None:
    with pytest.raises(UserError, match=r"^task needle: sample 7 has no context to compress; leave it out$"):
        Engine(loaded, TASK, config()).encode(short(7, context, question), [])


def test_a_text_without_tokens_to_score_is_refused(loaded: LoadedModel) -> None:
    task = Continuation(name="text", max_new_tokens=2)
    nothing = replace(short(7, "The sky is blue.", ""), answers=("",))
    with pytest.raises(UserError, match=r"^task text: sample 7 has no tokens to score; leave it out$"):
        Engine(loaded, task, config()).encode(nothing, [])


def test_questions_about_one_context_read_it_once_and_are_answered_as_alone(
    loaded: LoadedModel, cells: list[CellSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = sizes_of(monkeypatch, "prefill", 1)
    task = replace(TASK, n_keys=4, n_questions=4)
    samples = [
        task.sample(split="train", seed=0, index=index, length=400, count_tokens=loaded.count_tokens)
        for index in range(8)
    ]
    together = records(loaded, cells, samples, batch_rows=8)
    assert sizes == [1, 1]  # a batch of rows holds fewer than one context's questions in all cells
    assert len({record.context for record in together.values()}) == 2
    sizes.clear()
    alone = {}
    for sample_ in samples:
        alone |= records(loaded, cells, [sample_], batch_rows=8)
    assert sizes == [1] * 8
    assert together == alone


def test_fixed_decoding_takes_no_more_than_the_budgets_and_answers_as_the_cache_does(
    loaded: LoadedModel, cells: list[CellSpec]
) -> None:
    samples = [sample(loaded, index, length=length) for index, length in enumerate((400, 392, 400))]
    fixed = records(loaded, cells, samples, batch_rows=64, decoding="fixed")
    assert fixed == records(loaded, cells, samples, batch_rows=2, decoding="fixed")
    grown = records(loaded, cells, samples)
    for (index, label), record in fixed.items():
        other = grown[index, label]
        assert record.kv_bytes == other.kv_bytes < other.peak_kv_bytes
        if label == "full":
            assert (
                replace(record, decoding="grow") == other
            )  # everything is compared with a cache that keeps everything
        else:
            assert record.peak_kv_bytes == record.kv_bytes
    spec = cells[2]
    cache = BudgetedCache(loaded.model.config, spec.budgets, spec.policy, decoding="fixed", compress_above=0)
    engine = Engine(loaded, TASK, config())
    encoded = engine.encode(samples[0], cells)
    cache.prefill(loaded.model, torch.tensor([encoded.context]))
    ids = torch.tensor([[*encoded.context, *encoded.question]])
    generated = loaded.model.generate(ids, past_key_values=cache, max_new_tokens=12, do_sample=False)
    assert fixed[0, spec.label].prediction == loaded.decode(generated[0, ids.shape[1] :].tolist()).split("\n")[0]


def test_policies_that_score_while_they_write_never_exceed_their_bytes(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = {"n_layers": loaded.n_layers, "n_kv_heads": loaded.n_kv_heads}
    policies = [POLICIES["snapkv_d"](every=4), POLICIES["h2o_d"](), POLICIES["r_kv"](every=3), POLICIES["snapkv"]()]  # type: ignore[call-arg]
    cells = [
        CellSpec("uniform", policy.family, 0.7, Budgets.uniform(**shape, ratio=0.7), policy) for policy in policies
    ]
    samples = [sample(loaded, 0, length=300)]
    alone = records(loaded, cells, samples, batch_rows=1, decoding="fixed")
    sizes: list[tuple[int, int]] = []
    read = BatchState.read

    def watched(self: BatchState, *arguments: Any, **more: Any) -> Any:
        logits = read(self, *arguments, **more)
        if isinstance(self.cache, BudgetedCache):
            sizes.append((self.cache.kv_bytes(), sum(self.row_bytes())))
        return logits

    monkeypatch.setattr(BatchState, "read", watched)
    assert records(loaded, cells, samples, decoding="fixed") == alone
    assert len(sizes) > 8 and all(held == budgeted for held, budgeted in sizes)
    assert all(record.peak_kv_bytes == record.kv_bytes for record in alone.values())
