"""A task of one's own: a JSONL file and a metric by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from baklava.errors import UserError
from baklava.tasks.base import Sample
from baklava.tasks.jsonl import JsonlTask

LINES = [
    {
        "id": "first",
        "context": "The harbour had 31 boats.\n",
        "question": "How many boats had the harbour?",
        "answers": ["31", "31 boats"],
        "answer_prefix": " It had",
        "max_new_tokens": 5,
    },
    {"context": "Nothing. " * 500, "question": "What?", "answers": ["nothing"]},
    {"context": "x", "question": "y", "answers": "z"},
]


def words(text: str) -> int:
    return len(text.split())


@pytest.fixture
def task(tmp_path: Path) -> JsonlTask:
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in LINES), encoding="utf-8")
    return JsonlTask(name="mine", data=str(path), max_new_tokens=20)


def draw(task: JsonlTask, index: int, *, split: str = "evaluation", length: int = 200) -> Sample:
    return task.sample(split=split, seed=0, index=index, length=length, count_tokens=words)


def test_a_line_is_a_sample(task: JsonlTask) -> None:
    assert draw(task, 0) == Sample(
        index=0,
        context="The harbour had 31 boats.\n",
        question="How many boats had the harbour?",
        answer_prefix=" It had",
        answers=("31", "31 boats"),
        max_new_tokens=5,
        id="first",
    )


def test_what_a_line_leaves_out_has_a_default_and_what_is_too_long_is_cut(task: JsonlTask) -> None:
    sample = draw(task, 1)
    assert (sample.question, sample.answer_prefix, sample.max_new_tokens, sample.id) == ("What?", "", 20, "")
    assert words(sample.prompt) == 180


def test_a_bad_line_is_named_and_the_others_go_on(task: JsonlTask) -> None:
    with pytest.raises(UserError, match=r"mine\.jsonl, line 3: answers: expected a list of texts, got 'z'"):
        draw(task, 2)
    assert draw(task, 0).id == "first"


def test_there_are_as_many_samples_as_lines(task: JsonlTask) -> None:
    assert task.n_available() == 3
    assert task.n_samples(2) == 2
    assert task.n_samples(64) == 3
    with pytest.raises(UserError, match=r"task mine: sample 3 asked for, but .*mine\.jsonl has 3"):
        draw(task, 3)


def test_calibration_takes_lines_from_the_end(task: JsonlTask) -> None:
    assert draw(task, 2, split="calibration").id == "first"
    with pytest.raises(ValueError, match="unknown split 'test'"):
        draw(task, 0, split="test")


def test_the_metric_is_the_named_one(task: JsonlTask) -> None:
    assert task.score("31", ("31", "31 boats")) == 1.0
    assert JsonlTask(name="t", metric="count").score("31 or 32", ("31",)) == 0.5
    with pytest.raises(UserError, match="metric: unknown metric 'bleu'; known: string_match_all, "):
        JsonlTask(name="t", metric="bleu")


def test_classification_asks_for_the_classes(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    line = {"context": "x", "question": "y", "answers": ["good"]}
    path.write_text(json.dumps({**line, "all_classes": ["good", "bad"]}) + "\n" + json.dumps(line))
    task = JsonlTask(name="mine", data=str(path), metric="classification")
    sample = draw(task, 0)
    assert task.score("good", sample.answers, sample.all_classes) == 1.0
    assert task.score("good or bad", sample.answers, sample.all_classes) == 0.5
    with pytest.raises(UserError, match=r"line 2: all_classes: missing"):
        draw(task, 1)


def test_perfect_answer_scores_one(task: JsonlTask) -> None:
    sample = draw(task, 0)
    assert task.reference_answer(sample) == " 31"
    assert task.score(task.reference_answer(sample), sample.answers) == 1.0


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (None, "task mine: data: none given; set tasks.mine.data to a JSONL file with the fields context, question"),
        ("/no/such.jsonl", r"task mine: data: no such file or folder: /no/such\.jsonl; set tasks.mine.data to a JSONL"),
    ],
)
def test_missing_data_is_said_before_the_first_sample(data: str | None, said: str) -> None:
    task = JsonlTask(name="mine", data=data)
    with pytest.raises(UserError, match=said):
        task.check()
    with pytest.raises(UserError, match=said):
        task.n_available()


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_text("\n\n")
    with pytest.raises(UserError, match=r"mine\.jsonl has no rows; set tasks.mine.data"):
        JsonlTask(name="mine", data=str(tmp_path / "mine.jsonl")).n_available()


def test_a_row_that_lacks_a_field_is_found_before_the_first_job_except_one_that_was_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "mine.jsonl"
    good, lacking = json.dumps(LINES[0]), json.dumps({**LINES[0], "question": None})
    task = JsonlTask(name="mine", data=str(path))
    path.write_text(f"{good}\n{good}")
    task.check_rows()
    path.write_text(f"{good}\n{lacking}")
    with pytest.raises(UserError, match=r"mine\.jsonl, line 2: question: missing"):
        task.check_rows()
    monkeypatch.setattr("baklava.tasks.from_file.MAX_CHECKED_BYTES", len(good) + 20)
    task.check_rows()
    path.write_text(f"{lacking}\n{good}")
    with pytest.raises(UserError, match=r"line 1: question: missing"):
        task.check_rows()
