"""A sample as text to compress and text to read after it, with the model's chat template where there is one."""

from __future__ import annotations

from typing import Literal, NamedTuple

from transformers import PreTrainedTokenizerBase

from baklava.errors import UserError
from baklava.tasks import Sample

Protocol = Literal["question_agnostic", "question_aware"]

# Stands between context and question while the template is put around them; occurs in no text.
MARK = "\ue000baklava\ue001"


class Parts(NamedTuple):
    """What is compressed, what is read after it, and whether the tokenizer still puts its special tokens before."""

    context: str
    rest: str
    begin: bool


def split_prompt(sample: Sample, tokenizer: PreTrainedTokenizerBase, *, protocol: Protocol, chat: bool) -> Parts:
    """The prompt of a sample in two parts, as the protocol says.

    With `chat`, and where the tokenizer has a template and the sample wants it (`Sample.chat`), context and question
    are the user's turn; the answer prefix opens the model's ("question"), or is part of the user's too ("prompt").
    """
    context, question, prefix, begin = sample.context, sample.question, sample.answer_prefix, True
    if chat and sample.chat != "none" and tokenizer.chat_template is not None:
        if sample.chat == "prompt":
            question, prefix = question + prefix, ""
        turn = [{"role": "user", "content": context + MARK + question}]
        text = str(tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True))
        if text.count(MARK) != 1:
            raise UserError("the tokenizer's chat template changes the text; set evaluate.chat_template=false")
        (context, question), begin = text.split(MARK), False  # the template has the special tokens in it
    if protocol == "question_agnostic":
        return Parts(context, question + prefix, begin)
    return Parts(context + question, prefix, begin)
