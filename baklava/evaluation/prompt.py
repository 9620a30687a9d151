"""Samples as prompts: what is compressed and what is read after it, as text and in tokens."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, NamedTuple

from transformers import PreTrainedTokenizerBase

from baklava.errors import DataError
from baklava.experiment.chat_settings import DATE, TemplateValue
from baklava.experiment.schema import EvaluateConfig
from baklava.models.chat import ChatTemplate, chat_template
from baklava.models.encoder import Encoder, Tokens
from baklava.tasks import Sample, Task

Protocol = Literal["question_agnostic", "question_aware"]


class Parts(NamedTuple):
    """What is compressed, what is read after it, and whether the tokenizer still puts its special tokens before."""

    context: str
    rest: str
    begin: bool


def split_prompt(
    sample: Sample,
    tokenizer: PreTrainedTokenizerBase,
    *,
    protocol: Protocol,
    chat: bool,
    template_kwargs: Mapping[str, TemplateValue] | None = None,
    date: datetime.date = DATE,
) -> Parts:
    """The prompt of a sample in two parts, as the protocol says.

    With `chat`, and where the tokenizer has a template and the sample wants it (`Sample.chat`), context and question
    are the user's turn; the answer prefix opens the model's ("question"), or is part of the user's too ("prompt").
    """
    template = chat_template(tokenizer, template_kwargs, date) if chat and sample.chat != "none" else None
    return _split(sample, template, protocol)


def _split(sample: Sample, template: ChatTemplate | None, protocol: Protocol) -> Parts:
    context, question, prefix, begin = sample.context, sample.question, sample.answer_prefix, True
    if template is not None:
        if sample.chat == "prompt":
            question, prefix = question + prefix, ""
        context, question = template.around(context, question)
        begin = False  # the template has the special tokens in it
    if protocol == "question_agnostic":
        return Parts(context, question + prefix, begin)
    return Parts(context + question, prefix, begin)


@dataclass(frozen=True)
class Prompts:
    """How the samples of a task become the prompts of a model."""

    model: str  # its name
    tokenizer: PreTrainedTokenizerBase
    task: Task
    settings: EvaluateConfig
    template_kwargs: Mapping[str, TemplateValue] = field(default_factory=dict)

    @cached_property
    def encoder(self) -> Encoder:
        return Encoder(self.tokenizer)

    @cached_property
    def _template(self) -> ChatTemplate | None:
        """Raises `DataError` where it could take no sample, or not the variables for it."""
        template = chat_template(self.tokenizer, self.template_kwargs, self.settings.date)
        if template is not None:
            template.check(self.model)
        elif self.template_kwargs:
            raise DataError(
                f"models.{self.model}.chat_template_kwargs: its tokenizer has no chat template; leave them out"
            )
        return template

    def tokens(self, sample: Sample) -> Tokens:
        """The tokens of a sample, those of one whole text, in parts.

        Raises `UserError` where the chat template changes it, and `DataError` where it would change any sample.
        """
        wanted = self.settings.chat_template and sample.chat != "none"
        parts = _split(sample, self._template if wanted else None, self.settings.protocol)
        answer = sample.answers[0] if self.task.by_loss else ""
        return Tokens.of(*self.encoder.parts([parts.context, parts.rest, answer], begin=parts.begin))
