"""The middle of the token sequence goes, and nothing else."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from baklava.errors import UserError
from baklava.tasks.base import CountTokens, Sample
from baklava.tasks.text.truncate import cut_middle


def sample(context: str, question: str = " q1 q2", answer_prefix: str = " so:") -> Sample:
    return Sample(
        index=0, context=context, question=question, answer_prefix=answer_prefix, answers=("a",), max_new_tokens=10
    )


def words(text: str) -> int:
    return len(text.split())


def cut(one: Sample, length: int, count_tokens: CountTokens = words, **kept: bool) -> Sample:
    return cut_middle(one, task="t", location="f.jsonl, line 3", length=length, count_tokens=count_tokens, **kept)


def test_a_prompt_that_fits_stays() -> None:
    one = sample("c0 c1 c2")
    assert cut(one, 16) is one


def test_both_halves_of_the_tokens_stay() -> None:
    one = sample(" ".join(f"c{i}" for i in range(20)))
    done = cut(one, 20)  # 10 tokens of prompt
    assert done.prompt.split() == ["c0", "c1", "c2", "c3", "c4", "c18", "c19", "q1", "q2", "so:"]
    assert (done.question, done.answer_prefix) == (one.question, one.answer_prefix)


def test_a_question_longer_than_half_loses_its_beginning_as_published() -> None:
    one = sample("c0 c1 c2 c3", " " + " ".join(f"q{i}" for i in range(20)))
    done = cut(one, 20)
    assert done.context.split() == ["c0", "c1", "c2", "c3"]
    assert done.question.split() == ["q0", "q16", "q17", "q18", "q19"]


def test_a_question_that_must_stay_does() -> None:
    one = sample("c0 c1 c2 c3", " " + " ".join(f"q{i}" for i in range(20)))
    with pytest.raises(UserError, match=r"^task t: f\.jsonl, line 3: cannot be cut to length 20, 10 of it generated"):
        cut(one, 20, keep_question=True)


@pytest.mark.parametrize("length", [-1, 0, 10, 11])
def test_the_beginning_of_the_answer_stays(length: int) -> None:
    with pytest.raises(UserError, match="ask for a length of at least 14"):
        cut(sample("c " * 20), length)
    assert cut(sample("c " * 20), 14).answer_prefix == " so:"


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    context=st.text(st.sampled_from("abc de\n.北京1"), max_size=300),
    question=st.text(st.sampled_from("abc de\n.北京1"), max_size=60),
    length=st.integers(14, 200),
)
def test_what_stays_is_the_beginning_and_the_end(
    context: str, question: str, length: int, count_tokens: CountTokens
) -> None:
    one = sample(context, question, "!")
    try:
        done = cut(one, length, count_tokens)
    except UserError:
        assert length < 20  # "!" and the token that begins a text
        return
    if done is one:
        assert count_tokens(one.prompt) <= length - 10
        return
    assert count_tokens(done.prompt) <= length - 10
    assert done.answer_prefix == "!"
    assert any(
        done.prompt == one.prompt[:i] + one.prompt[len(one.prompt) - (len(done.prompt) - i) :]
        for i in range(1, len(done.prompt))
    )


def test_is_the_cut_of_the_token_sequence_up_to_a_part_of_a_token() -> None:
    """Against cutting the ids themselves, as the published script does."""
    from tokenizers import Tokenizer

    from baklava.models import reference_model_path

    fast = Tokenizer.from_file(str(reference_model_path("tiny-llama") / "tokenizer.json"))
    one = sample("\n".join(f"Sentence {i}: the harbour of {i * 37} boats, unchanged." for i in range(200)))
    for length in (101, 256, 1000):
        ids = fast.encode(one.prompt).ids
        half = (length - 10) // 2
        head, tail = fast.decode(ids[:half]), fast.decode(ids[-half:])
        done = cut(one, length, lambda text: len(fast.encode(text).ids)).prompt
        assert done.startswith(head)
        assert done.endswith(tail)
        assert len(done) - len(head) - len(tail) <= 20
