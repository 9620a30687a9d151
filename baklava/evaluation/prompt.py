"""Turns samples into prompts: the context that is compressed and what is read after it, as text and as tokens."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, NamedTuple

from transformers import PreTrainedTokenizerBase

from baklava.errors import DataError
from baklava.experiment.chat_settings import DATE, TemplateValue
from baklava.experiment.settings import EvaluateConfig
from baklava.models.chat import ChatTemplate, find_chat_template
from baklava.models.encoder import Encoder, Tokens
from baklava.tasks import Sample, Task

Protocol = Literal["question_agnostic", "question_aware"]


class SplitPrompt(NamedTuple):
    """A prompt as text: the context that is compressed, and the remainder that is read after it."""

    context: str
    remainder: str
    begin: bool  # whether the tokenizer still has to put its special tokens before the context


def split_prompt(
    sample: Sample,
    tokenizer: PreTrainedTokenizerBase,
    *,
    protocol: Protocol,
    chat: bool,
    template_kwargs: Mapping[str, TemplateValue] | None = None,
    date: datetime.date = DATE,
) -> SplitPrompt:
    """Split the prompt of a sample in two, as the protocol says.

    With `chat`, and where the tokenizer has a template and the sample wants it (`Sample.chat`), context and question
    are the user's turn. The answer prefix begins the model's turn ("question") or ends the user's ("prompt").
    """
    template = find_chat_template(tokenizer, template_kwargs, date) if chat and sample.chat != "none" else None
    return _split(sample, template, protocol)


def _split(sample: Sample, template: ChatTemplate | None, protocol: Protocol) -> SplitPrompt:
    context, question, prefix, begin = sample.context, sample.question, sample.answer_prefix, True
    if template is not None:
        if sample.chat == "prompt":
            question, prefix = question + prefix, ""
        context, question = template.wrap(context, question)
        begin = False  # the template contains the special tokens
    if protocol == "question_agnostic":
        return SplitPrompt(context, question + prefix, begin)
    return SplitPrompt(context + question, prefix, begin)


@dataclass(frozen=True)
class Prompts:
    """Makes the prompts of a model from the samples of a task."""

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
        """The template; raises `DataError` if it changes every text or does not read the variables set for it."""
        template = find_chat_template(self.tokenizer, self.template_kwargs, self.settings.date)
        if template is not None:
            template.check(self.model)
        elif self.template_kwargs:
            raise DataError(
                f"models.{self.model}.chat_template_kwargs: its tokenizer has no chat template; leave them out"
            )
        return template

    def tokens(self, sample: Sample) -> Tokens:
        """The tokens of a sample in parts, which together are the tokens of its prompt as one text.

        Raises `UserError` if the chat template changes this sample, and `DataError` if it would change any.
        """
        wanted = self.settings.chat_template and sample.chat != "none"
        split = _split(sample, self._template if wanted else None, self.settings.protocol)
        answer = sample.answers[0] if self.task.by_loss else ""
        return Tokens.of(*self.encoder.encode_parts([split.context, split.remainder, answer], begin=split.begin))
