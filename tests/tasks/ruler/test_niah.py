"""Needle in a haystack, as RULER words it."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baklava.errors import UserError
from baklava.tasks import NeedleInHaystack, Sample
from baklava.tasks.ruler.niah import draw_word_keys
from baklava.tasks.text.noise import NOISE_LINE

NEEDLE = re.compile(r"^One of the special magic numbers for (.+-.+) is: (\d+)\.$", re.MULTILINE)

SINGLE = NeedleInHaystack(name="single")
MULTIKEY = NeedleInHaystack(name="multikey", n_keys=4)
MULTIVALUE = NeedleInHaystack(name="multivalue", n_values=4)
MULTIQUERY = NeedleInHaystack(name="multiquery", n_keys=4, n_queries=4)
TASKS = (SINGLE, MULTIKEY, MULTIVALUE, MULTIQUERY)


def words(text: str) -> int:
    return len(text.split())


def draw(task: NeedleInHaystack, *, index: int = 0, length: int = 512) -> Sample:
    return task.sample(split="evaluation", seed=0, index=index, length=length, count_tokens=words)


def test_single_reads_as_in_ruler() -> None:
    sample = draw(NeedleInHaystack(name="single", max_new_tokens=8), length=110)
    [(key, value)] = NEEDLE.findall(sample.context)
    noise = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
    needle = f"One of the special magic numbers for {key} is: {value}."
    lines = sample.context.split("\n")
    assert lines[0] == (
        "A special magic number is hidden within the following text. Make sure to memorize it. "
        "I will quiz you about the number afterwards."
    )
    assert sorted(lines[1:-1]) == sorted([needle, noise, noise])
    assert lines[-1] == ""
    assert sample.question == f"What is the special magic number for {key} mentioned in the provided text?"
    assert sample.answer_prefix == f" The special magic number for {key} mentioned in the provided text is"
    assert sample.prompt == sample.context + sample.question + sample.answer_prefix
    assert sample.answers == (value,)


def test_several_read_as_in_ruler() -> None:
    sample = draw(NeedleInHaystack(name="several", n_keys=3, n_queries=3))
    pairs = dict(NEEDLE.findall(sample.context))
    assert sample.context.startswith(
        "Some special magic numbers are hidden within the following text. Make sure to memorize it. "
        "I will quiz you about the numbers afterwards.\n"
    )
    start, end = "What are all the special magic numbers for ", " mentioned in the provided text?"
    assert sample.question.startswith(start)
    assert sample.question.endswith(end)
    asked = sample.question.removeprefix(start).removesuffix(end)
    first, second, third = asked.split(", ")
    assert third.startswith("and ")
    keys = [first, second, third.removeprefix("and ")]
    assert sorted(keys) == sorted(pairs)
    assert sample.answer_prefix == f" The special magic numbers for {asked} mentioned in the provided text are"
    assert sample.answers == tuple(pairs.values())  # in the order of the text


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
@settings(max_examples=25)
@given(index=st.integers(0, 2**40))
def test_every_needle_occurs_once_and_the_answers_are_those_asked_for(task: NeedleInHaystack, index: int) -> None:
    sample = draw(task, index=index)
    pairs = NEEDLE.findall(sample.context)
    assert len(pairs) == task.n_keys * task.n_values
    assert len({key for key, _ in pairs}) == task.n_keys
    assert all(re.fullmatch(r"[1-9]\d{6}", value) for _, value in pairs)
    for key, value in pairs:
        assert sample.context.count(f"One of the special magic numbers for {key} is: {value}.") == 1
    # Whole keys, since one may end with another.
    asked = [key for key, _ in pairs if re.search(rf"(for|and|,) {re.escape(key)}(,| mentioned)", sample.question)]
    assert len(set(asked)) == task.n_queries
    assert sorted(sample.answers) == sorted(value for key, value in pairs if key in asked)


def test_lines_are_needles_and_noise_only() -> None:
    lines = draw(MULTIKEY).context.split("\n")[1:-1]
    assert {line for line in lines if not NEEDLE.match(line)} == {NOISE_LINE}
    assert sum(line != NOISE_LINE for line in lines) == 4


def test_values_of_a_key_are_answered_in_the_order_of_the_text() -> None:
    sample = draw(MULTIVALUE)
    assert sample.answers == tuple(value for _, value in NEEDLE.findall(sample.context))


def test_needles_lie_anywhere_in_the_text() -> None:
    places = []
    for index in range(200):
        sample = draw(SINGLE, index=index)
        places.append(sample.context.index("One of the special magic numbers") / len(sample.context))
    tenths = {int(10 * place) for place in places}
    assert tenths == set(range(10))  # from the first tenth to the last


def test_reference_answer_goes_on_from_the_prefix() -> None:
    sample = draw(MULTIQUERY)
    assert MULTIQUERY.reference_answer(sample) == " " + ", ".join(sample.answers) + "."
    assert MULTIQUERY.score(f"{sample.answers[0]} {sample.answers[3]}", sample.answers) == 0.5


def test_word_keys_differ_and_join_an_adjective_to_a_noun() -> None:
    import random

    keys = draw_word_keys(500, random.Random(0))
    assert len(set(keys)) == 500
    assert all("-" in key for key in keys)
    assert draw_word_keys(500, random.Random(0)) == keys


def test_no_more_keys_are_asked_for_than_there_are() -> None:
    with pytest.raises(UserError, match=r"n_queries \(2\) must not be more than n_keys \(1\)"):
        NeedleInHaystack(name="t", n_queries=2)


def test_successive_samples_ask_about_other_needles_of_one_context() -> None:
    task = NeedleInHaystack(name="questions", n_keys=6, n_questions=3)
    samples = [draw(task, index=index) for index in range(6)]
    assert [sample.context == samples[0].context for sample in samples] == [True] * 3 + [False] * 3
    for sample in samples:
        values = dict(NEEDLE.findall(sample.context))
        [asked] = [key for key in values if key in sample.question]
        assert sample.answers == (values[asked],) and asked in sample.answer_prefix
    assert len({sample.question for sample in samples}) == 6


def test_no_key_is_asked_for_twice_about_one_context() -> None:
    with pytest.raises(UserError, match=r"n_questions x n_queries \(5\) must not be more than n_keys \(4\)"):
        NeedleInHaystack(name="questions", n_keys=4, n_questions=5)
