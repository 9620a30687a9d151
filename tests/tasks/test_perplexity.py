"""Pieces of a text: whole, of the asked length, and none twice."""

from __future__ import annotations

import json
import random
from itertools import pairwise
from pathlib import Path

import pytest
from small_tokenizers import KINDS, tokenizer

from baklava.errors import UserError
from baklava.models.encoder import Encoder
from baklava.tasks.base import CountTokens, Sample
from baklava.tasks.perplexity import Continuation
from baklava.tasks.text.python_docs import load_docstrings, load_english_text

N = 16
LENGTH = 100


def words(text: str) -> int:
    return len(text.split())


def draw(task: Continuation, index: int = 0, *, split: str = "evaluation", count_tokens: CountTokens = words) -> Sample:
    return task.sample(split=split, seed=0, index=index, length=LENGTH, count_tokens=count_tokens)


@pytest.fixture
def task(essay_file: Path) -> Continuation:
    return Continuation(name="mine", data=str(essay_file), max_new_tokens=N)


def test_context_and_continuation_are_one_piece_of_the_text(
    task: Continuation, essay_file: Path, count_tokens: CountTokens
) -> None:
    text = essay_file.read_text()
    for index in range(3):
        sample = draw(task, index, count_tokens=count_tokens)
        assert sample.context + sample.answers[0] in text
        assert 0.9 * (LENGTH - N) <= count_tokens(sample.context) <= LENGTH - N
        assert 0.9 * N - 1 <= count_tokens(sample.answers[0]) - count_tokens("") <= N
        assert (sample.question, sample.answer_prefix, sample.chat, sample.max_new_tokens) == ("", "", "none", N)
        assert task.reference_answer(sample) == sample.answers[0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_piece_has_the_asked_length_in_the_tokens_of_the_whole(tmp_path: Path, kind: str) -> None:
    """Whatever happens at the border, of spaces, lines, numbers and characters of several bytes."""
    rng, pieces = (
        random.Random(0),
        ["The", "key", "is", "12", "34567", "\n", " ", "  ", "café", "é", "日本", "x", ".", " a"],
    )
    path = tmp_path / "mixed.txt"
    path.write_text("".join(rng.choice(pieces) for _ in range(4000)))
    encoder = Encoder(tokenizer(kind))
    task = Continuation(name="mixed", data=str(path), max_new_tokens=N)
    for index in range(4):
        sample = draw(task, index, count_tokens=encoder.count)
        context, continuation = encoder.encode_parts([sample.context, *sample.answers], begin=True)
        assert 0.8 * LENGTH <= len(context) + len(continuation) <= LENGTH
        assert 0.7 * N <= len(continuation) <= N + 2


def test_pieces_do_not_overlap_and_do_not_depend_on_the_order_asked(task: Continuation, essay_file: Path) -> None:
    text = essay_file.read_text()
    samples = [draw(task, index) for index in range(8)]
    places = sorted((text.index(one.context), one) for one in samples)
    for (start, one), (after, _) in pairwise(places):
        assert start + len(one.context + one.answers[0]) <= after
    other = Continuation(name="mine", data=str(essay_file), max_new_tokens=N)
    assert [draw(other, index) for index in (5, 2, 7, 2)] == [samples[index] for index in (5, 2, 7, 2)]


def test_splits_and_seeds_have_orders_of_their_own(task: Continuation) -> None:
    contexts = {draw(task, split=split).context for split in ("train", "calibration", "evaluation")}
    other = task.sample(split="evaluation", seed=1, index=0, length=LENGTH, count_tokens=words).context
    assert len({*contexts, other}) == 4


def test_more_samples_than_pieces_are_refused_with_their_number(tmp_path: Path) -> None:
    path = tmp_path / "few.jsonl"
    path.write_text("".join(json.dumps({"body": f"{i} " + "boats " * 400}) + "\n" for i in range(2)))
    task = Continuation(name="mine", data=str(path), field="body", max_new_tokens=N)
    found = []

    def all_of_them() -> None:
        found.extend(draw(task, index) for index in range(100))

    with pytest.raises(
        UserError, match=r"sample \d+ asked for, but .*few\.jsonl has \d+ pieces of 100 tokens"
    ) as error:
        all_of_them()
    assert f"ask for at most {len(found)}," in str(error.value)
    assert len(found) >= 2


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("mine", None, r"task mine: data: none given; set tasks\.mine\.data to a text or JSONL file"),
        ("mine", "/no/such.txt", r"task mine: data: no such file or folder: /no/such\.txt; set tasks\.mine\.data"),
        ("mine", "standin", "task mine: data: standin is a text that comes with Python, so the name"),
        ("mine", "docstrings", "choose the task continuation_docstrings"),
    ],
)
def test_what_is_missing_is_said_before_the_first_job(name: str, data: str | None, said: str) -> None:
    with pytest.raises(UserError, match=said):
        Continuation(name=name, data=data).check()


def test_the_stand_in_is_named_as_such() -> None:
    task = Continuation(name="continuation_standin", data="standin", max_new_tokens=N)
    task.check()
    assert draw(task).context


def test_docstrings_are_another_text_than_the_language_reference() -> None:
    paragraphs = [text for text in load_docstrings().split("\n\n") if len(text) > 100]
    assert len(paragraphs) > 1000
    assert not [text for text in paragraphs[::50] if text in load_english_text()]
    assert draw(Continuation(name="continuation_docstrings", data="docstrings", max_new_tokens=N)).context


def test_a_malformed_row_names_its_line(tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"text": 3}\n')
    with pytest.raises(UserError, match=r"bad\.jsonl, line 1: text: expected a text, got 3"):
        draw(Continuation(name="mine", data=str(tmp_path / "bad.jsonl"), max_new_tokens=N))


def test_too_short_a_length_is_refused(task: Continuation) -> None:
    with pytest.raises(UserError, match=r"length 31 is too short: 16 tokens are scored.*at least 32"):
        task.sample(split="evaluation", seed=0, index=0, length=31, count_tokens=words)


def test_there_are_no_predictions_to_score(task: Continuation) -> None:
    with pytest.raises(UserError, match="task mine: its score is a loss of the model itself"):
        task.score("boats", ("boats",))
