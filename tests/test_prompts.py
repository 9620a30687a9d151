"""Prompts in two parts that are the whole prompt together, chat template included."""

from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerFast

from baklava.errors import UserError
from baklava.prompts import split_prompt
from baklava.tasks import Sample
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
