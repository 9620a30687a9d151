"""Training documents: within their length, marked where the answers are, equal for equal random streams."""

from __future__ import annotations

import random
import re
from itertools import groupby

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from baklava.experiment.compose import compose_training
from baklava.tasks.ruler import niah, vt
from baklava.training.documents import Document, DocumentWriter, Mark
from baklava.training.recipe import Recipe
from baklava.training.tokenizer import END

RECIPES = [Recipe.model_validate(compose_training(name)) for name in ("tiny-llama", "tiny-qwen2")]
KINDS = sorted({kind for recipe in RECIPES for stage in recipe.stages for kind in stage.mix})
SEEDS = st.integers(0, 2**40)
LEAST = {"variables": 160}  # a chain of two hops with its question, without any noise

NEEDLE = re.compile(r"One of the special magic numbers for (.+?-.+?) is: (\d+)\.")
QUESTION = re.compile(
    r"What (?:is|are all) the special magic numbers? for (.+?) mentioned in the provided text\?"
    r" The special magic numbers? for \1 mentioned in the provided text (?:is|are)"
)
STATEMENT = re.compile(r"VAR ([A-Z]+) = (?:VAR ([A-Z]+)|(\d+))\n")


@pytest.fixture(scope="session")
def writer(tokenizer: PreTrainedTokenizerFast) -> DocumentWriter:
    return DocumentWriter(tokenizer)


def write(writer: DocumentWriter, kind: str, length: int, seed: int) -> Document:
    return writer.kinds()[kind](length, random.Random(seed))


def marked(document: Document, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """Text of each run of tokens that the context determines."""
    runs = groupby(zip(document.ids, document.marks, strict=True), key=lambda marked: marked[1] != Mark.BACKGROUND)
    return [tokenizer.decode([token for token, _ in run]) for answer, run in runs if answer]


def chosen(document: Document, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """Text of each token at which the model must find the place."""
    pairs = zip(document.ids, document.marks, strict=True)
    return [tokenizer.decode([token]) for token, mark in pairs if mark == Mark.CHOICE]


def lengths_of(kind: str) -> list[int]:
    """The lengths at which the recipes ask for a kind."""
    stages = [stage for recipe in RECIPES for stage in recipe.stages if kind in stage.mix]
    return sorted(
        {length for stage in stages for length in (stage.length, 2 * stage.length if stage.doubled else stage.length)}
    )


@pytest.mark.parametrize("kind", KINDS)
def test_recipes_ask_for_kinds_that_exist(writer: DocumentWriter, kind: str) -> None:
    assert kind in writer.kinds()


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40)
@given(data=st.data(), seed=SEEDS)
def test_is_never_longer_than_asked(writer: DocumentWriter, kind: str, data: st.DataObject, seed: int) -> None:
    length = data.draw(st.sampled_from(lengths_of(kind)))
    document = write(writer, kind, length, seed)
    assert 0 < len(document.ids) <= max(length, LEAST.get(kind, 0))
    assert len(document.ids) == len(document.marks)


@pytest.mark.parametrize("kind", KINDS)
def test_depends_on_the_random_stream_alone(
    writer: DocumentWriter, tokenizer: PreTrainedTokenizerFast, kind: str
) -> None:
    first = write(writer, kind, 560, seed=1)
    assert write(writer, kind, 560, seed=2) != first
    assert write(DocumentWriter(tokenizer), kind, 560, seed=1) == first


@pytest.mark.parametrize("kind", ["single_needles", "listed_needles"])
@settings(max_examples=20)
@given(length=st.sampled_from([320, 560, 1024]), seed=SEEDS)
def test_answers_to_needle_questions_are_marked_and_right(
    writer: DocumentWriter, tokenizer: PreTrainedTokenizerFast, kind: str, length: int, seed: int
) -> None:
    document = write(writer, kind, length, seed)
    text = tokenizer.decode(document.ids)
    pairs = NEEDLE.findall(text)
    questions = QUESTION.findall(text)
    assert questions
    expected = []
    for question in questions:
        keys = {key for key, _ in pairs if re.search(rf"(^|, |and ){re.escape(key)}(,|$)", question)}
        expected.append(niah.select_values(sorted(keys), pairs))
    assert marked(document, tokenizer) == [niah.write_answer(values) + END for values in expected]
    assert chosen(document, tokenizer) == [value[0] for values in expected for value in values]


@settings(max_examples=30)
@given(length=st.sampled_from([320, 560, 1024]), seed=SEEDS)
def test_chains_of_variables_are_marked_and_right(
    writer: DocumentWriter, tokenizer: PreTrainedTokenizerFast, length: int, seed: int
) -> None:
    document = write(writer, "variables", length, seed)
    texts = tokenizer.decode(document.ids).split(vt.HEADER)[1:]
    chains = []
    for text in texts:
        names = [name for name, _, _ in STATEMENT.findall(text)]
        assert [assigned for _, assigned, _ in STATEMENT.findall(text)] == ["", *names[:-1]]
        chains.append(" ".join(names))
    answers = [chain + END if chain is chains[-1] else chain for chain in chains]
    assert marked(document, tokenizer) == answers
    assert chosen(document, tokenizer) == [name[0] for chain in chains for name in chain.split()]


@settings(max_examples=30)
@given(length=st.sampled_from([128, 320]), seed=SEEDS)
def test_recall_asks_for_values_that_were_given_before(
    writer: DocumentWriter, tokenizer: PreTrainedTokenizerFast, length: int, seed: int
) -> None:
    document = write(writer, "short_recall", length, seed)
    lines = tokenizer.decode(document.ids).splitlines()
    stated = [re.search(r"(\S+) is: (\d\d)$", line) for line in lines]
    asked = [re.search(r"(\S+?)(?: is: | mentioned in the provided text is )(\d\d)$", line) for line in lines]
    given = {match[1]: match[2] for match in reversed(stated) if match}
    answers = marked(document, tokenizer)
    n_stated = len(lines) - len(answers)
    assert answers == [f"{given[match[1]]}\n" for match in asked[n_stated:] if match]
    assert chosen(document, tokenizer) == [answer[0] for answer in answers]


@settings(max_examples=30)
@given(length=st.integers(16, 400), seed=SEEDS)
def test_repetition_marks_what_has_been_seen_before(writer: DocumentWriter, length: int, seed: int) -> None:
    document = write(writer, "repetition", length, seed)
    answers = [index for index, mark in enumerate(document.marks) if mark == Mark.ANSWER]
    assert answers == list(range(len(document.ids) - len(answers), len(document.ids)))
    if answers:
        period = answers[0] - 2  # one period, and two tokens that say where it starts again
        assert document.ids[period:] == document.ids[:-period]


def test_english_is_background_and_a_window_of_the_source(
    writer: DocumentWriter, tokenizer: PreTrainedTokenizerFast
) -> None:
    from baklava.tasks.text.python_docs import load_english_text

    document = write(writer, "english", 320, seed=0)
    assert set(document.marks) == {Mark.BACKGROUND}
    assert tokenizer.decode(document.ids[:-2]) in load_english_text()  # the last tokens may be parts of a character
