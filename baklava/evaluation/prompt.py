"""Turns samples into prompts: the context that is compressed and what is read after it, as text and as tokens."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from baklava.errors import DataError
from baklava.evaluation.turns import next_question
from baklava.experiment.chat_settings import DATE, TemplateValue
from baklava.experiment.settings import EvaluateConfig, Protocol
from baklava.models.chat import ChatTemplate, find_chat_template
from baklava.models.encoder import Encoder, Tokens
from baklava.tasks import Sample, Task


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
    if protocol == "question_aware":
        return SplitPrompt(context + question, prefix, begin)
    return SplitPrompt(context, question + prefix, begin)


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

    def tokens(self, sample: Sample, earlier: Sequence[Sample] = ()) -> Tokens:
        """The tokens of a sample in parts, which together are the tokens of its prompt as one text.

        `earlier` turns, samples about the same context, come between the context and the question. Raises `UserError`
        if the chat template changes this sample, and `DataError` if it would change any.
        """
        wanted = self.settings.chat_template and sample.chat != "none"
        template = self._template if wanted else None
        split = _split(earlier[0] if earlier else sample, template, self.settings.protocol)
        if not earlier:
            answer = sample.answers[0] if self.task.by_loss else ""
            return Tokens.of(*self.encoder.encode_parts([split.context, split.remainder, answer], begin=split.begin))
        parts = [split.context, split.remainder]
        for before, after in pairwise((*earlier, sample)):
            parts += [self.task.reference_answer(before), _later_question(after, template)]
        context, *turns = self.encoder.encode_parts(parts, begin=split.begin)
        return Tokens.of_turns(context, turns)


def _later_question(sample: Sample, template: ChatTemplate | None) -> str:
    """What comes between the answer of the turn before and that of this one."""
    if template is None:
        return next_question(sample) + sample.answer_prefix
    if sample.chat == "prompt":
        return template.next_turn(sample.question + sample.answer_prefix)
    return template.next_turn(sample.question) + sample.answer_prefix
