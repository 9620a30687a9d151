"""Variable tracking, as RULER words it."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baklava.errors import UserError
from baklava.tasks import Sample, VariableTracking
from baklava.tasks.base import CountTokens

HEADER = "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n"
STATEMENT = re.compile(r"^VAR ([A-Z]+) = (?:VAR ([A-Z]+)|(\d+))$", re.MULTILINE)
TASK = VariableTracking(name="vt")


def words(text: str) -> int:
    return len(text.split())


def draw(task: VariableTracking, *, index: int = 0, length: int = 512, count_tokens: CountTokens = words) -> Sample:
    return task.sample(split="evaluation", seed=0, index=index, length=length, count_tokens=count_tokens)


def test_reads_as_in_ruler() -> None:
    """Down to the letter, the misspelt `assgined` included; also pins the random stream of a sample."""
    sample = draw(VariableTracking(name="vt", n_hops=2, example_length=85), length=222)
    assert sample.context == (
        "Memorize and track the chain(s) of variable assignment hidden in the following text.\n"
        "\n"
        "VAR UYN = 19144\n"
        "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.\n"
        "VAR DRX = VAR UYN\n"
        "VAR DTQ = VAR DRX\n"
        "Question: Find all variables that are assigned the value 19144 in the text above. "
        "Answer: According to the chain(s) of variable assignment in the text above, "
        "3 variables are assgined the value 19144, they are: UYN DRX DTQ\n"
        "\n"
        "Memorize and track the chain(s) of variable assignment hidden in the following text.\n"
        "\n"
        "VAR TTZBN = 85849\n"
        "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.\n"
        "VAR VKENP = VAR TTZBN\n"
        "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.\n"
        "VAR XBSKW = VAR VKENP\n"
    )
    assert sample.question == "Question: Find all variables that are assigned the value 85849 in the text above."
    assert sample.answer_prefix == (
        " Answer: According to the chain(s) of variable assignment in the text above, "
        "3 variables are assgined the value 85849, they are: "
    )
    assert sample.answers == ("TTZBN", "VKENP", "XBSKW")
    assert sample.max_new_tokens == 30
    assert TASK.reference_answer(sample) == "TTZBN VKENP XBSKW"
    assert TASK.score("ttzbn, XBSKW", sample.answers) == pytest.approx(2 / 3)


@settings(max_examples=25)
@given(index=st.integers(0, 2**40), n_hops=st.integers(1, 6))
def test_every_statement_occurs_once_and_the_chain_leads_to_the_value(index: int, n_hops: int) -> None:
    sample = draw(VariableTracking(name="vt", n_hops=n_hops, example_length=200), index=index, length=700)
    text = sample.context.split(HEADER)[-1]
    statements = STATEMENT.findall(text)
    assert len(statements) == n_hops + 1
    assert all(sample.context.count(f"VAR {name} = ") == 1 for name, _, _ in statements)
    first, *later = statements
    value = first[2]
    assert f"assigned the value {value} in" in sample.question
    assert f"{n_hops + 1} variables are assgined the value {value}," in sample.answer_prefix
    chain = [first[0]]
    for name, assigned, _ in later:
        assert assigned == chain[-1]
        chain.append(name)
    assert sample.answers == tuple(chain)
    assert all(re.fullmatch("[A-Z]{5}", name) for name in chain)


def test_example_is_solved_and_within_its_length(count_tokens: CountTokens) -> None:
    for index in range(5):
        context = draw(TASK, index=index, length=4096, count_tokens=count_tokens).context
        example = context[: context.index(HEADER, 1)]
        assert example.startswith(HEADER)
        assert count_tokens(example) <= 500
        names = [name for name, _, _ in STATEMENT.findall(example)]
        assert len(names) == 5
        assert all(len(name) == 3 for name in names)
        assert example.endswith(f"they are: {' '.join(names)}\n\n")


def test_example_of_length_zero_is_left_out() -> None:
    context = draw(VariableTracking(name="vt", example_length=0)).context
    assert context.count(HEADER) == 1
    assert context.startswith(HEADER)
    assert "Question" not in context


def test_too_short_an_example_is_refused() -> None:
    with pytest.raises(UserError, match="task vt: example_length 20 is too short for a solved example, which takes"):
        draw(VariableTracking(name="vt", example_length=20))
