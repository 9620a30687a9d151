"""The job: one row per sample and cell, nothing computed twice, failures counted and not in the way."""

from __future__ import annotations

import json
import math
import shutil
import sys
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from baklava.analysis.cells import read_cells
from baklava.analysis.summary import summarize_cells
from baklava.budgets import Budgets
from baklava.cli import PARTLY_FAILED, main
from baklava.errors import UserError
from baklava.evaluation import samples as samples_module
from baklava.evaluation import scheduler as scheduler_module
from baklava.evaluation.engine import Engine
from baklava.evaluation.record_schema import COLUMNS, SCHEMA, Record
from baklava.evaluation.run import evaluate
from baklava.evaluation.samples import batches
from baklava.evaluation.timings import timings
from baklava.eviction.kvzip import MAX_LOSS
from baklava.experiment.jobs import EvaluateJob
from baklava.experiment.settings import SummaryConfig
from baklava.models import reference_model_path

LENGTH = 400
TEXTS = {"n_samples": 3, "length": 160, "compress_above": 0}


def job(folder: Path, ratios: tuple[float, ...] = (0.5,), **changed: Any) -> EvaluateJob:
    """Three samples with the full cache and with uniform budgets."""
    cells = []
    folder.mkdir(parents=True, exist_ok=True)
    for ratio in ratios:
        path = folder / f"{ratio}.json"
        Budgets.uniform(n_layers=6, n_kv_heads=4, ratio=ratio).save(path)
        cells.append({"allocator": "uniform", "eviction": "streaming_llm", "ratio": ratio, "path": str(path)})
    values: dict[str, Any] = {
        "model": {"name": "tiny-llama", "path": "reference:tiny-llama", "dtype": "float32"},
        "task": {"name": "needle", "family": "niah", "max_new_tokens": 12},
        "evictions": {"streaming_llm": {"name": "streaming_llm", "family": "streaming_llm"}},
        "evaluate": {"n_samples": 3, "length": LENGTH},
        "cells": cells,
        "store": str(folder / "store.lines"),
        "records": str(folder / "records.parquet"),
        "timings": str(folder / "timings.parquet"),
    }
    return EvaluateJob.model_validate({**values, **changed})


def label(record: Record) -> str:
    return "full" if record.allocator == "full" else f"{record.allocator}/{record.eviction} r={record.ratio:g}"


def run(one: EvaluateJob, monkeypatch: pytest.MonkeyPatch) -> tuple[list[tuple[Any, ...]], list[dict[str, Any]]]:
    """The (sample, cell) pairs that were computed, and the records."""
    computed = []
    answer = Engine.answer

    def watched(self: Engine, batch: Any) -> Any:
        for records in answer(self, batch):
            computed.extend((record.sample, label(record)) for record in records)
            yield records

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "answer", watched)
        evaluate(one)
    records = pq.read_table(one.records).to_pylist()
    return computed, [{key: value for key, value in row.items() if value == value} for row in records]  # NaN != NaN


def test_writes_one_row_per_sample_and_cell(tmp_path: Path) -> None:
    assert evaluate(job(tmp_path)) == 0
    table = pq.read_table(tmp_path / "records.parquet")
    assert table.schema.equals(COLUMNS)
    assert table.schema.metadata[b"schema_version"] == str(SCHEMA).encode()
    keys = [(row["sample"], row["allocator"], row["ratio"]) for row in table.to_pylist()]
    assert keys == [(i, *cell) for i in range(3) for cell in (("full", 0.0), ("uniform", 0.5))]
    times = pq.read_table(tmp_path / "timings.parquet").to_pylist()
    assert [(row["sample"], row["allocator"], row["ratio"]) for row in times] == keys
    assert all(row["seconds"] > 0 for row in times)


def test_what_repeating_a_context_took_is_beside_the_seconds_and_not_in_the_records(tmp_path: Path) -> None:
    one = job(tmp_path)
    cells = tuple(cell.model_copy(update={"eviction": "kvzip"}) for cell in one.cells)
    values = {**one.model_dump(), "evictions": {"kvzip": {"name": "kvzip", "family": "kvzip"}}, "cells": cells}
    evaluate(EvaluateJob.model_validate(values))
    assert pq.read_table(tmp_path / "records.parquet").schema.equals(COLUMNS)
    times = pq.read_table(tmp_path / "timings.parquet").to_pylist()
    full, repeated = ([row for row in times if row["eviction"] == eviction] for eviction in ("none", "kvzip"))
    assert all(math.isnan(row["repetition_loss"]) and math.isnan(row["repetition_seconds"]) for row in full)
    assert all(0 < row["repetition_seconds"] < row["seconds"] for row in repeated)
    assert len({row["repetition_loss"] for row in repeated}) == 3  # each context has its own
    again = timings([tmp_path / "timings.parquet"]).set_index("eviction").loc["kvzip"]
    losses = [row["repetition_loss"] for row in repeated]
    assert again["repetition_loss"] == pytest.approx(sum(losses) / 3)
    assert again["highest_repetition_loss"] == max(losses)
    assert again["failed_repetitions"] == sum(loss > MAX_LOSS for loss in losses) / 3


def test_budgets_of_another_ratio_are_refused(tmp_path: Path) -> None:
    one = job(tmp_path)
    wrong = one.model_copy(update={"cells": (one.cells[0].model_copy(update={"ratio": 0.7}),)})
    with pytest.raises(UserError, match=r"0\.5\.json: budgets for ratio 0\.5, expected 0\.7"):
        evaluate(wrong)


def test_a_second_run_computes_nothing_and_loads_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    computed, first = run(job(tmp_path), monkeypatch)
    assert len(computed) == 6
    monkeypatch.setattr("baklava.evaluation.run.load_model", None)
    computed, second = run(job(tmp_path), monkeypatch)
    assert (computed, second) == ([], first)


def test_short_contexts_are_answered_once_by_the_full_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compressed, before = run(job(tmp_path, (0.5, 0.8)), monkeypatch)
    assert len(compressed) == 9
    length = sorted(row["context_tokens"] for row in before)[3]  # one sample is not longer, or all are alike
    short = {row["sample"] for row in before if row["context_tokens"] <= length}
    settings = {"n_samples": 3, "length": LENGTH, "compress_above": length}
    computed, records = run(job(tmp_path, (0.5, 0.8), evaluate=settings), monkeypatch)
    assert computed == []  # the full cache's answers are there
    of_full = {row["sample"]: row for row in before if row["allocator"] == "full"}
    assert [(row["sample"], row["ratio"]) for row in records] == [(row["sample"], row["ratio"]) for row in before]
    for row, was in zip(records, before, strict=True):
        if row["sample"] not in short:
            assert row == was
        else:
            expected = of_full[row["sample"]]
            assert {name for name in row if row[name] != expected[name]} <= {"allocator", "eviction", "ratio"}
            assert row["kept_entries"] == row["total_entries"] and row["kv_bytes"] == row["kv_bytes_full"]
    computed, again = run(job(tmp_path / "new", (0.5, 0.8), evaluate=settings), monkeypatch)
    assert sorted(computed) == sorted((i, label) for i, label in compressed if i not in short or label == "full")
    assert again == records


def test_short_contexts_are_kept_whole_and_overwritten_where_later_tokens_overwrite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"n_samples": 1, "length": LENGTH, "decoding": "fixed", "compress_above": LENGTH}
    computed, (full, fixed) = run(job(tmp_path, evaluate=settings), monkeypatch)
    cell = "uniform/streaming_llm r=0.5"
    assert sorted(computed) == [(0, "full"), (0, cell)]
    assert fixed["kept_entries"] == fixed["total_entries"] and fixed["peak_kv_bytes"] == full["kv_bytes"]
    assert full["peak_kv_bytes"] > full["kv_bytes"]
    computed, (_, compressed) = run(job(tmp_path, evaluate={**settings, "compress_above": 0}), monkeypatch)
    assert computed == [(0, cell)] and compressed["kept_entries"] < fixed["kept_entries"]


def test_a_new_ratio_or_sample_computes_only_what_is_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, first = run(job(tmp_path), monkeypatch)
    computed, _ = run(job(tmp_path, (0.5, 0.8)), monkeypatch)
    assert sorted(computed) == [(i, "uniform/streaming_llm r=0.8") for i in range(3)]
    more = job(tmp_path, evaluate={"n_samples": 4, "length": LENGTH})
    computed, records = run(more, monkeypatch)
    assert {index for index, _ in computed} == {3}
    assert records[:6] == first


@pytest.mark.parametrize(
    "changed",
    [
        {"evaluate": {"n_samples": 3, "length": LENGTH, "seed": 1}},
        {"evaluate": {"n_samples": 3, "length": LENGTH, "protocol": "question_aware"}},
        {"evaluate": {"n_samples": 3, "length": 350}},
        {"task": {"name": "needle", "family": "niah", "max_new_tokens": 5}},
        {"model": {"name": "tiny-llama", "path": "reference:tiny-llama", "dtype": "bfloat16"}},
    ],
    ids=str,
)
def test_whatever_determines_the_answers_is_part_of_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: dict[str, Any]
) -> None:
    run(job(tmp_path), monkeypatch)
    computed, _ = run(job(tmp_path, **changed), monkeypatch)
    assert len(computed) == 6
    computed, _ = run(job(tmp_path), monkeypatch)  # and what was there before still is
    assert computed == []


def test_another_decoding_makes_all_but_the_full_caches_answers_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(job(tmp_path), monkeypatch)
    fixed = job(tmp_path, evaluate={"n_samples": 3, "length": LENGTH, "decoding": "fixed"})
    computed, records = run(fixed, monkeypatch)
    assert len(computed) == 3 and {record["decoding"] for record in records} == {"fixed"}


def test_budgets_policy_and_engine_version_are_part_of_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = job(tmp_path, evaluate={"n_samples": 1, "length": LENGTH})
    compressed = [(0, "uniform/streaming_llm r=0.5")]
    assert len(run(one, monkeypatch)[0]) == 2
    policy = {"streaming_llm": {"name": "streaming_llm", "family": "streaming_llm", "n_sink": 8}}
    assert (
        run(job(tmp_path, evictions=policy, evaluate={"n_samples": 1, "length": LENGTH}), monkeypatch)[0] == compressed
    )
    shares = Budgets.load(one.cells[0].path).shares.copy()
    shares[0, 0], shares[0, 1] = 0.6, 0.4
    Budgets.from_shares(shares, ratio=0.5).save(one.cells[0].path)
    assert run(one, monkeypatch)[0] == compressed
    assert run(one, monkeypatch)[0] == []
    Budgets.from_shares(shares, ratio=0.5, page=16).save(one.cells[0].path)  # equal shares, other entries
    assert run(one, monkeypatch)[0] == compressed
    assert run(one, monkeypatch)[0] == []
    with monkeypatch.context() as patch:
        patch.setattr(samples_module, "VERSION", samples_module.VERSION + 1)
        assert len(run(one, monkeypatch)[0]) == 2
    assert run(one, monkeypatch)[0] == []


def test_all_that_makes_a_prompt_is_part_of_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a template that writes the date and reads a switch; where it writes no date, another one changes nothing."""
    folder = tmp_path / "model"
    shutil.copytree(reference_model_path("tiny-llama"), folder)
    monkeypatch.setattr("baklava.models.files.model_fingerprint", lambda model: None)  # as of files on a hub
    template, dated = "{{ messages[0].content }}{% if short %}!{% endif %}", "{{ strftime_now('%d %B') }}\n"

    def n_computed(text: str, *, date: str = "2024-07-26", **kwargs: bool) -> int:
        (folder / "chat_template.jinja").write_text(text)
        model = {"name": "m", "path": str(folder), "dtype": "float32", "chat_template_kwargs": kwargs}
        one = job(tmp_path, model=model, evaluate={"n_samples": 1, "length": LENGTH, "date": date})
        return len(run(one, monkeypatch)[0])

    assert n_computed(dated + template) == 2
    assert n_computed(dated + template) == 0
    assert n_computed(dated + template, date="2024-07-27") == 2
    assert n_computed(dated + template, short=True) == 2
    assert n_computed(dated + template, short=False) == 0
    assert n_computed(template) == 2
    assert n_computed(template, date="2024-07-27") == 0


def test_variables_that_a_chat_template_does_not_read_are_refused_before_any_answer(tmp_path: Path) -> None:
    one = job(tmp_path)
    model = one.model.model_copy(update={"chat_template_kwargs": {"enable_thinking": False}})
    with pytest.raises(UserError, match=r"^models\.tiny-llama\.chat_template_kwargs: its tokenizer has no"):
        evaluate(one.model_copy(update={"model": model}))


def test_batch_size_is_no_part_of_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(job(tmp_path), monkeypatch)
    other = job(tmp_path, evaluate={"n_samples": 3, "length": LENGTH, "batch_rows": 1})
    assert run(other, monkeypatch)[0] == []


def test_a_killed_run_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = run(job(tmp_path), monkeypatch)[1]
    lines = (tmp_path / "store.lines").read_bytes().splitlines(keepends=True)
    (tmp_path / "store.lines").write_bytes(b"".join(lines[:4]) + lines[4][:30])  # header, three answers and a part
    (tmp_path / "records.parquet").unlink()
    computed, records = run(job(tmp_path), monkeypatch)
    assert len(computed) == 3
    assert records == expected


GOOD = {"context": "The boats left. ", "question": "Good?", "answer_prefix": " It is", "answers": ["good", "fine"]}


def own(
    folder: Path, rows: list[dict[str, Any] | str], *, metric: str = "string_match_all", **changed: Any
) -> EvaluateJob:
    """A job over rows of a JSONL file, two new tokens each."""
    data = folder / "mine.jsonl"
    lines = [row if isinstance(row, str) else json.dumps({"max_new_tokens": 2, **row}) for row in rows]
    data.write_text("".join(line + "\n" for line in lines))
    task = {"name": "mine", "family": "jsonl", "data": str(data), "metric": metric}
    return job(folder, **{"task": task, "evaluate": {"n_samples": 64, "length": LENGTH}, **changed})


def failures(folder: Path) -> list[str]:
    """Per sample the reason, the same in each of its two cells."""
    records = pq.read_table(folder / "records.parquet").to_pylist()
    assert [one["sample"] for one in records] == [i for i in range(len(records) // 2) for _ in range(2)]
    assert all(one["failed"] == other["failed"] for one, other in zip(records[::2], records[1::2], strict=True))
    return [one["failed"] for one in records[::2]]


@pytest.mark.parametrize(
    ("metric", "bad", "said"),
    [
        ("string_match_all", {**GOOD, "answers": 7}, "mine.jsonl, line 2: answers: expected a list of texts"),
        ("string_match_all", '{"context": ', "mine.jsonl, line 2: not JSON"),
        ("string_match_all", {**GOOD, "question": None}, "mine.jsonl, line 2: question: missing"),
        ("string_match_all", {**GOOD, "question": "Why? " * 400}, "mine.jsonl, line 2: cannot be cut to length 400"),
        ("string_match_all", {**GOOD, "context": ""}, "task mine: sample 1 has no context to compress"),
        ("retrieval", {**GOOD, "answers": ["12"]}, "answers: expected `Paragraph ` with a number after it"),
    ],
)
def test_a_sample_that_cannot_be_made_or_scored_is_recorded_and_the_others_answered(
    metric: str, bad: dict[str, Any] | str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = {**GOOD, "answers": ["Paragraph 1"]}
    assert (
        main(["evaluate", "--job", own(tmp_path, [good, bad, good], metric=metric).model_dump_json()]) == PARTLY_FAILED
    )
    assert "1 samples failed; the others are done" in capsys.readouterr().err
    found = failures(tmp_path)
    assert (found[0], found[2]) == ("", "")
    assert said in found[1]
    cells = read_cells([tmp_path / "records.parquet"]).values()
    assert [(len(one.sample), one.n_failed) for one in cells] == [(2, 1)] * 2


def test_a_sample_that_fits_into_no_memory_has_failed_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prefill, compress_rows = scheduler_module.prefill, scheduler_module.compress_rows

    def scarce_prefill(loaded: Any, contexts: Any, policies: Any, *more: Any) -> Any:
        if max(map(len, contexts)) > 150:
            raise torch.OutOfMemoryError
        return prefill(loaded, contexts, policies, *more)

    def scarce(loaded: Any, prefilled: Any, budgets: Any, policies: Any, places: Any, **more: Any) -> Any:
        if any(prefilled.lengths[place] > 80 and not one.ratio for place, one in zip(places, budgets, strict=True)):
            raise torch.OutOfMemoryError
        return compress_rows(loaded, prefilled, budgets, policies, places, **more)

    monkeypatch.setattr(scheduler_module, "prefill", scarce_prefill)
    monkeypatch.setattr(scheduler_module, "compress_rows", scarce)
    rows = [{**GOOD, "context": "boat " * n} for n in (20, 200, 100, 20)]
    assert evaluate(own(tmp_path, rows)) == 2
    found = failures(tmp_path)
    assert [bool(one) for one in found] == [False, True, True, False]
    assert "tokens of context do not fit into memory; lower evaluate.length" in found[1]
    monkeypatch.undo()
    assert evaluate(own(tmp_path, rows)) == 0  # failures are not kept in the store


def test_a_task_too_long_for_the_positions_of_the_model_is_refused(tmp_path: Path) -> None:
    one = job(tmp_path, evaluate={"n_samples": 3, "length": 100_000})
    with pytest.raises(UserError, match=r"evaluate\.length: 100000 tokens, but model tiny-llama has \d+ positions"):
        evaluate(one)


def test_a_sample_too_long_for_the_positions_of_the_model_has_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chat template comes on top of the length."""
    monkeypatch.setattr("baklava.models.load.LoadedModel.n_positions", 150)
    one = own(tmp_path, [GOOD, {**GOOD, "context": "boat " * 140}], evaluate={"n_samples": 2, "length": 150})
    encode = Engine.encode

    def templated(self: Engine, sample: Any, cells: Any, *_: Any, **__: Any) -> Any:
        longer = sample.context + "boat " * 40 if sample.index else sample.context
        return encode(self, replace(sample, context=longer), cells)

    monkeypatch.setattr(Engine, "encode", templated)
    assert evaluate(one) == 1
    assert "task mine: sample 1 takes" in failures(tmp_path)[1]


def text_job(folder: Path, **changed: Any) -> EvaluateJob:
    task = {"name": "continuation_standin", "family": "continuation", "data": "standin", "max_new_tokens": 24}
    return job(folder, **{"task": task, "evaluate": TEXTS, **changed})


def test_continuations_have_losses_and_the_summary_their_perplexity(tmp_path: Path) -> None:
    assert evaluate(text_job(tmp_path)) == 0
    records = pq.read_table(tmp_path / "records.parquet").to_pylist()
    assert len(records) == 6
    assert all(one["score"] == pytest.approx(math.exp(-one["loss"])) and one["loss"] > 0 for one in records)
    assert {one["prediction"] for one in records} == {""}
    assert len({one["loss"] for one in records}) == 6
    rows = summarize_cells(read_cells([tmp_path / "records.parquet"]), SummaryConfig(n_bootstrap=100)).to_pylist()
    for row in rows:
        own_losses = [one["loss"] for one in records if one["allocator"] == row["allocator"]]
        assert row["perplexity"] == pytest.approx(math.exp(sum(own_losses) / 3))


def test_the_loss_of_a_continuation_does_not_depend_on_the_batch_and_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {**TEXTS, "batch_rows": 1}
    _, alone = run(text_job(tmp_path / "alone", evaluate=settings), monkeypatch)
    computed, together = run(text_job(tmp_path / "all"), monkeypatch)
    assert len(computed) == 6
    assert [one["loss"] for one in together] == pytest.approx([one["loss"] for one in alone], abs=2e-5)
    assert run(text_job(tmp_path / "all"), monkeypatch) == ([], together)


def test_generated_answers_have_no_loss(tmp_path: Path) -> None:
    evaluate(own(tmp_path, [GOOD]))
    assert all(math.isnan(one["loss"]) for one in pq.read_table(tmp_path / "records.parquet").to_pylist())


def test_memory_does_not_grow_with_the_number_of_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither samples nor answers are held: at most a batch of each is alive at any time."""
    born: list[weakref.ref[Any]] = []
    most = 0

    def answered(self: Engine, works: Any) -> Any:
        nonlocal most
        for batch in batches(works, 4):
            found = [
                Record.of(cell.identify("tiny-llama", "mine", self.settings), encoded.sample.index, **RECORD)
                for encoded in batch
                for cell in encoded.cells
            ]
            born.extend(weakref.ref(one) for one in (*batch, *found))
            most = max(most, sum(one() is not None for one in born))
            yield found

    monkeypatch.setattr(Engine, "answer", answered)
    peaks = []
    for n in (40, 160):
        most = 0
        settings = {"n_samples": n, "length": LENGTH, "batch_rows": 4}
        assert (
            evaluate(own(tmp_path, [{**GOOD, "context": f"Boat {i} left. "} for i in range(n)], evaluate=settings)) == 0
        )
        assert pq.read_metadata(tmp_path / "records.parquet").num_rows == 2 * n
        peaks.append(most)
    assert peaks[0] == peaks[1] <= 3 * (2 + 4)


RECORD = {
    "context_tokens": 8,
    "prediction": "good",
    "answers": ["good"],
    "group": "",
    "score": 1.0,
    "kept_entries": 8,
    "total_entries": 8,
    "kv_bytes": 8,
    "kv_bytes_full": 8,
    "seconds": 0.1,
}


class TestWhatSpoilsEverySample:
    """It ends the job with one error before the model is loaded, and is no failure of each sample."""

    def test_a_package_that_is_not_there(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        data = tmp_path / "mine.jsonl"
        data.write_text('{"context": "x", "question": "y", "answers": ["z"]}\n')
        task = {"name": "mine", "family": "jsonl", "data": str(data), "metric": "rouge_l_zh"}
        monkeypatch.setitem(sys.modules, "jieba", None)
        assert "need jieba" in self.refused(job(tmp_path, task=task), monkeypatch)

    @pytest.mark.parametrize(
        "task", [{"family": "niah", "haystack": "essay", "essay": "DATA"}, {"family": "continuation", "data": "DATA"}]
    )
    def test_a_text_that_ends_in_another_encoding(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: dict[str, Any]
    ) -> None:
        data = tmp_path / "text.txt"
        data.write_bytes(b"The harbour had 31 boats. " * 1000 + b"\n\xe9")  # where no look at the beginning finds it
        named = {key: str(data) if value == "DATA" else value for key, value in task.items()}
        said = self.refused(job(tmp_path, task={"name": "mine", **named}), monkeypatch)
        assert said.startswith(f"{data}, line 2: not in UTF-8")

    def refused(self, one: EvaluateJob, monkeypatch: pytest.MonkeyPatch) -> str:
        monkeypatch.setattr("baklava.evaluation.run.load_model", None)
        with pytest.raises(UserError) as error:
            evaluate(one)
        assert not one.records.exists()
        return str(error.value)
