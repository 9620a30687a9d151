"""Common words, as RULER words them."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from baklava.errors import UserError
from baklava.tasks import Sample
from baklava.tasks.ruler.cwe import CommonWords

TASK = CommonWords(name="cwe")
ENTRY = re.compile(r"(?:^| )(\d+)\. (.+?)(?= \d+\. |$)")


def words(text: str) -> int:
    return len(text.split())


def draw(*, index: int = 0, length: int = 1024, task: CommonWords = TASK) -> Sample:
    return task.sample(split="evaluation", seed=0, index=index, length=length, count_tokens=words)


def lists(sample: Sample) -> tuple[str, str, str]:
    """The example's list, its answer and the list that is asked about."""
    header = (
        "Below is a numbered list of words. In these words, some appear more often than others. "
        "Memorize the ones that appear most often.\n"
    )
    question = "Question: What are the 10 most common words in the above list?"
    prefix = " Answer: The top 10 words that appear most often in the list are:"
    assert (sample.question, sample.answer_prefix) == (question, prefix)
    _, example, listed = sample.context.split(header)
    example_list, answer = example.split(f"\n{question}{prefix} ")
    assert listed.endswith("\n")
    return example_list, answer.removesuffix("\n"), listed.removesuffix("\n")


@pytest.mark.parametrize(
    ("length", "example", "asked"),
    [(1024, (3, 1, 20), (6, 1)), (4096, (10, 3, 40), (30, 3)), (20_000, (10, 3, 40), (30, 3))],
)
def test_words_occur_as_often_as_in_ruler(length: int, example: tuple[int, int, int], asked: tuple[int, int]) -> None:
    sample = draw(length=length)
    example_list, answer, listed = lists(sample)
    for text, repeats, common in (
        (example_list, example[:2], [word for _, word in ENTRY.findall(answer)]),
        (listed, asked, list(sample.answers)),
    ):
        entries = ENTRY.findall(text)
        assert [int(number) for number, _ in entries] == list(range(1, len(entries) + 1))
        counts = Counter(word for _, word in entries)
        assert len(common) == 10
        assert {counts.pop(word) for word in common} == {repeats[0]}
        assert set(counts.values()) == {repeats[1]}
    assert len({word for _, word in ENTRY.findall(example_list)}) == example[2]


def test_perfect_answer_is_a_numbered_list() -> None:
    sample = draw()
    assert TASK.reference_answer(sample).startswith(f" 1. {sample.answers[0]} 2. {sample.answers[1]}")
    assert TASK.score(", ".join(sample.answers[:5]), sample.answers) >= 0.5


def test_nearly_all_words_can_be_used() -> None:
    sample = draw(length=49_500)
    assert 49_000 < words(sample.prompt) + sample.max_new_tokens <= 49_500


def test_a_list_longer_than_the_lexicon_asks_for_more_words(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"length 90000 takes more than the 8166 words there are; set tasks.cwe.more_w"):
        draw(length=90_000)
    path = tmp_path / "english_words.json"
    path.write_text(json.dumps({str(i): f"word{i}" for i in range(20_000)}))
    task = CommonWords(name="cwe", more_words=str(path))
    assert words(draw(length=90_000, task=task).prompt) > 81_000


def test_bad_word_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"task cwe: more_words: no such file: /no/words\.txt"):
        CommonWords(name="cwe", more_words="/no/words.txt").check()
    (tmp_path / "words.json").write_text("[1, 2]")
    with pytest.raises(UserError, match=r"words\.json: expected an object whose values are words"):
        draw(task=CommonWords(name="cwe", more_words=str(tmp_path / "words.json")))


def test_common_words_must_be_common() -> None:
    with pytest.raises(UserError, match=r"common_repeats \(3\) must be more than other_repeats \(3\)"):
        CommonWords(name="t", common_repeats=3)
