"""Prompts in two parts that are the whole prompt together, chat template included."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_tokenizers import AFTER, KINDS, Pairs
from small_tokenizers import tokenizer as of_kind
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from baklava.errors import DataError, UserError
from baklava.evaluation.prompt import Prompts, split_prompt
from baklava.experiment.settings import EvaluateConfig
from baklava.tasks import NeedleInHaystack, Sample
from baklava.tasks.perplexity import Continuation
from baklava.training.tokenizer import build_tokenizer

TEMPLATE = (
    "{% for message in messages %}<{{ message.role }}>{{ message.content }}</{{ message.role }}>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def sample(chat: str) -> Sample:
    return Sample(
        index=0, context="C. ", question="Q?", answer_prefix=" A:", answers=("a",), max_new_tokens=1, chat=chat
    )


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = build_tokenizer()
    tokenizer.chat_template = TEMPLATE
    return tokenizer


@pytest.mark.parametrize(
    ("chat", "agnostic", "aware"),
    [
        ("question", ("<user>C. ", "Q?</user><assistant> A:"), ("<user>C. Q?</user><assistant>", " A:")),
        ("prompt", ("<user>C. ", "Q? A:</user><assistant>"), ("<user>C. Q? A:</user><assistant>", "")),
        ("none", ("C. ", "Q? A:"), ("C. Q?", " A:")),
    ],
)
def test_the_template_goes_around_what_the_sample_says(tokenizer, chat, agnostic, aware):
    begin = chat == "none"
    assert split_prompt(sample(chat), tokenizer, protocol="question_agnostic", chat=True) == (*agnostic, begin)
    assert split_prompt(sample(chat), tokenizer, protocol="question_aware", chat=True) == (*aware, begin)


@pytest.mark.parametrize("chat", ["question", "prompt"])
def test_no_template_where_none_is_wanted_or_there(tokenizer, chat):
    plain = ("C. ", "Q? A:", True)
    assert split_prompt(sample(chat), tokenizer, protocol="question_agnostic", chat=False) == plain
    tokenizer.chat_template = None
    assert split_prompt(sample(chat), tokenizer, protocol="question_agnostic", chat=True) == plain


def test_a_template_that_loses_the_text_is_refused(tokenizer):
    tokenizer.chat_template = "{{ messages | length }}"
    with pytest.raises(UserError, match=r"evaluate\.chat_template=false"):
        split_prompt(sample("question"), tokenizer, protocol="question_agnostic", chat=True)


def prompts(tokenizer: PreTrainedTokenizerBase, *, by_loss: bool = False, **more: Any) -> Prompts:
    task = Continuation(name="c", data="x") if by_loss else NeedleInHaystack(name="needle")
    kwargs = more.pop("template_kwargs", {})
    return Prompts("mine", tokenizer, task, EvaluateConfig(n_samples=1, length=64, **more), kwargs)


pieces = st.lists(
    st.sampled_from(["The key is", " ", "12", "345", "\n", "\n\n", "  ", "green.", " What", "café", "é", "?", ":"])
    | st.text(max_size=3),
    min_size=1,
    max_size=6,
).map("".join)


@pytest.mark.parametrize("chat", ["none", "question", "prompt"])
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=15, deadline=None)
@given(context=pieces, question=pieces, prefix=st.sampled_from(["", " A:", "\nAnswer:"]))
def test_the_tokens_are_what_transformers_makes_of_the_whole_text(
    kind: str, chat: str, context: str, question: str, prefix: str
) -> None:
    tokenizer = _templated(kind)
    one = replace(sample(chat), context=context, question=question, answer_prefix=prefix)
    if chat == "none":
        expected = tokenizer.encode(one.prompt)[: -1 if kind in AFTER else None]  # without the token that ends a text
    else:
        inside, after = (question + prefix, "") if chat == "prompt" else (question, prefix)
        turn = [{"role": "user", "content": context + inside}]
        text = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True) + after
        expected = tokenizer.encode(text, add_special_tokens=False)
    agnostic, aware = (
        prompts(tokenizer, protocol=protocol).tokens(one) for protocol in ("question_agnostic", "question_aware")
    )
    for tokens in (agnostic, aware):
        assert tokens.context + tokens.question == expected
        assert tokens.answer == []
        assert tokens.question or not expected
        assert tokenizer.eos_token_id not in tokens.context
    assert len(agnostic.context) <= len(aware.context)


def _templated(kind: str) -> PreTrainedTokenizerBase:
    """With the beginning token in the template, as most have it."""
    tokenizer = of_kind(kind)
    tokenizer.chat_template = "{{ bos_token }}" + TEMPLATE
    return tokenizer


@pytest.mark.parametrize("kind", KINDS)
def test_a_template_brings_the_token_that_begins_a_text_once(kind: str) -> None:
    tokenizer = _templated(kind)
    tokens = prompts(tokenizer).tokens(sample("question"))
    assert (tokens.context + tokens.question).count(tokenizer.bos_token_id) == 1


def test_a_token_that_holds_the_end_of_the_context_and_the_beginning_of_the_question_is_not_compressed() -> None:
    tokenizer = of_kind("llama3")  # digits by threes
    one = replace(sample("none"), context="The key is 12", question="34567")
    assert tokenizer.decode(prompts(tokenizer).tokens(one).context, skip_special_tokens=True) == "The key is "


def test_an_answer_that_is_read_goes_on_from_the_prompt() -> None:
    tokenizer = of_kind("llama2")
    one = replace(sample("none"), context="A bog", question="", answer_prefix="", answers=(" ate fig 7",))
    tokens = prompts(tokenizer, by_loss=True).tokens(one)
    assert [*tokens.context, *tokens.question, *tokens.answer] == tokenizer.encode("A bog ate fig 7")
    assert tokenizer.convert_ids_to_tokens(tokens.question) == ["g"]
    assert tokenizer.convert_ids_to_tokens(tokens.answer)[:2] == ["▁", "at"]


def test_variables_without_a_template_are_refused_where_one_is_wanted() -> None:
    made = prompts(Pairs(), template_kwargs={"enable_thinking": False})
    with pytest.raises(DataError, match=r"^models\.mine\.chat_template_kwargs: its tokenizer has no chat template"):
        made.tokens(sample("question"))
    assert made.tokens(sample("none")).question


def test_a_template_that_could_take_no_sample_is_the_failure_of_all() -> None:
    tokenizer = build_tokenizer()
    tokenizer.chat_template = "{{ messages[0].content | upper }}"
    with pytest.raises(DataError, match="model mine: the tokenizer's chat template changes the text"):
        prompts(tokenizer).tokens(sample("prompt"))
    assert prompts(tokenizer, chat_template=False).tokens(sample("prompt")).question
    tokenizer.chat_template = "{{ messages[0].content | replace('unlucky', '') }}"
    with pytest.raises(UserError, match="changes the text") as error:
        prompts(tokenizer).tokens(replace(sample("prompt"), context="An unlucky text. "))
    assert not isinstance(error.value, DataError)
