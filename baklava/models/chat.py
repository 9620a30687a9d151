"""Wraps a text in a tokenizer's chat template, with the same result on every day."""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase

from baklava.errors import DataError, UserError, first_line
from baklava.experiment.chat_settings import DATE, TemplateValue

Message = dict[str, str]

# Marks the border of two texts while the template is rendered; occurs in no text.
MARK = "\ue000baklava\ue001"

REMEDY = "set evaluate.chat_template=false"

# Replaces the function that templates call for the current date.
CLOCK = "strftime_now"
MACRO = """\
{%- macro strftime_now(format) -%}
{%- set made = namespace(text=format) -%}
{%- for code, value in CODES -%}{%- set made.text = made.text.replace(code, value) -%}{%- endfor -%}
{{- made.text -}}
{%- endmacro %}
"""
CODES = "aAbBcdDeFgGhHIjklmMpRSTuUVwWxXyYzZ"
PERCENT = "\ue002"  # stands for a literal percent sign


@dataclass(frozen=True)
class ChatTemplate:
    """A tokenizer's chat template, its variables, and the date that it is told is today."""

    tokenizer: PreTrainedTokenizerBase
    kwargs: Mapping[str, TemplateValue] = field(default_factory=dict)
    date: datetime.date = DATE

    def wrap(self, before: str, after: str) -> tuple[str, str]:
        """Render the user's turn and the beginning of the model's turn, and cut them where `after` begins.

        A template may strip the white space around the joined text. Raises `UserError` where it changes anything else.
        """
        text = before + after
        rendered = self._render([{"role": "user", "content": text}])
        first, mark, last = self._render([{"role": "user", "content": before + MARK + after}]).partition(MARK)
        if mark and MARK not in last and text.strip() in rendered:
            for head in (first, first.rstrip()):  # without a question, the context may lose its last space
                for tail in (last, last.lstrip()):
                    if head + tail == rendered:
                        return head, tail
        raise UserError(f"the tokenizer's chat template changes the text; {REMEDY}")

    def next_turn(self, question: str) -> str:
        """Render what follows an answer of the model: the end of its turn, the user's next, and the model's beginning.

        Raises `UserError` where the template changes the question, or takes one question only.
        """
        turns = [("user", "A question?"), ("assistant", MARK), ("user", question)]
        _, mark, rendered = self._render([{"role": role, "content": text} for role, text in turns]).partition(MARK)
        if not mark or MARK in rendered or question.strip() not in rendered:
            raise UserError(f"the tokenizer's chat template changes a text of several turns; {REMEDY}")
        return rendered

    def check(self, model: str) -> None:
        """Raise `DataError` where the template cannot take any sample, or does not read one of the variables."""
        try:
            self.wrap("A text. ", "A question?")
        except UserError as error:
            raise DataError(f"model {model}: {error}") from None
        for key in self.kwargs:
            if not re.search(rf"\b{re.escape(key)}\b", self._text):
                raise DataError(
                    f"models.{model}.chat_template_kwargs: its chat template reads no {key!r}; see its tokenizer's "
                    "chat_template for what it reads"
                )

    def find_turn_end(self) -> str:
        """The text that the template writes after the model's turn; empty where it renders no finished turn."""
        turns = [{"role": "user", "content": "A question?"}, {"role": "assistant", "content": MARK}]
        try:
            return self._render(turns, open_turn=False).partition(MARK)[2]
        except UserError:
            return ""

    @property
    def _text(self) -> str:
        """The text of the template; of several, the default."""
        try:
            return str(self.tokenizer.get_chat_template())
        except Exception as error:  # several, and none is the default
            raise UserError(f"the tokenizer's chat template cannot be used ({first_line(error)}); {REMEDY}") from None

    def _render(self, turns: list[Message], *, open_turn: bool = True) -> str:
        """Render the turns; with `open_turn`, add the beginning of the model's next turn."""
        text, variables = self._text, dict[str, Any](self.kwargs)
        if CLOCK in text:
            text = self._clock() + text
        try:
            rendered = self.tokenizer.apply_chat_template(
                turns, chat_template=text, tokenize=False, add_generation_prompt=open_turn, **variables
            )
        except Exception as error:  # templates may raise anything
            raise UserError(f"the tokenizer's chat template cannot be used ({first_line(error)}); {REMEDY}") from None
        return str(rendered)

    def _clock(self) -> str:
        """A macro that formats midnight of the set date, in place of the function that gives the current date."""
        midnight = datetime.datetime.combine(self.date, datetime.time())
        values = [["%%", PERCENT], *([f"%-{code}", str(int(midnight.strftime(f"%{code}")))] for code in "dmjHIMSyY")]
        values += [[f"%{code}", midnight.strftime(f"%{code}")] for code in CODES]
        return MACRO.replace("CODES", repr([*values, [PERCENT, "%"]]))


def find_chat_template(
    tokenizer: PreTrainedTokenizerBase, kwargs: Mapping[str, TemplateValue] | None = None, date: datetime.date = DATE
) -> ChatTemplate | None:
    """The chat template of a tokenizer; None where it has none."""
    if getattr(tokenizer, "chat_template", None) is None:
        return None
    return ChatTemplate(tokenizer, kwargs or {}, date)
