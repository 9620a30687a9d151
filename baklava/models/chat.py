"""A tokenizer's chat template around a text, the same on every day."""

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

# Stands between two texts while the template is put around them; occurs in no text.
MARK = "\ue000baklava\ue001"

REMEDY = "set evaluate.chat_template=false"

# Takes the place of the function by which templates ask for today's date.
CLOCK = "strftime_now"
MACRO = """\
{%- macro strftime_now(format) -%}
{%- set made = namespace(text=format) -%}
{%- for code, value in CODES -%}{%- set made.text = made.text.replace(code, value) -%}{%- endfor -%}
{{- made.text -}}
{%- endmacro %}
"""
CODES = "aAbBcdDeFgGhHIjklmMpRSTuUVwWxXyYzZ"
PERCENT = "\ue002"  # stands for a percent sign that is meant


@dataclass(frozen=True)
class ChatTemplate:
    """The template of a tokenizer that has one, variables for it, and the date that it is told."""

    tokenizer: PreTrainedTokenizerBase
    kwargs: Mapping[str, TemplateValue] = field(default_factory=dict)
    date: datetime.date = DATE

    def around(self, before: str, after: str) -> tuple[str, str]:
        """The user's turn and the beginning of the model's, cut where `after` begins in the user's.

        A template may strip the white space around a turn, as it would of the whole text.
        Raises `UserError` where it changes anything else.
        """
        text = before + after
        whole = self._render([{"role": "user", "content": text}])
        first, mark, last = self._render([{"role": "user", "content": before + MARK + after}]).partition(MARK)
        if mark and MARK not in last and text.strip() in whole:
            for head in (first, first.rstrip()):  # where nothing is asked, the context may lose its last space
                for tail in (last, last.lstrip()):
                    if head + tail == whole:
                        return head, tail
        raise UserError(f"the tokenizer's chat template changes the text; {REMEDY}")

    def check(self, model: str) -> None:
        """Raise `DataError` where the template could take no sample, or does not read one of the variables."""
        try:
            self.around("A text. ", "A question?")
        except UserError as error:
            raise DataError(f"model {model}: {error}") from None
        for key in self.kwargs:
            if not re.search(rf"\b{re.escape(key)}\b", self._text):
                raise DataError(
                    f"models.{model}.chat_template_kwargs: its chat template reads no {key!r}; see its tokenizer's "
                    "chat_template for what it reads"
                )

    def turn_end(self) -> str:
        """What the template writes after the model's turn; empty where it cannot tell."""
        turns = [{"role": "user", "content": "A question?"}, {"role": "assistant", "content": MARK}]
        try:
            return self._render(turns, more=False).partition(MARK)[2]
        except UserError:
            return ""

    @property
    def _text(self) -> str:
        """The template itself; where there are several, the default one."""
        try:
            return str(self.tokenizer.get_chat_template())
        except Exception as error:  # several, and none is the default
            raise UserError(f"the tokenizer's chat template cannot be used ({first_line(error)}); {REMEDY}") from None

    def _render(self, turns: list[Message], *, more: bool = True) -> str:
        """The turns in the template; with `more`, up to where the model's next turn begins."""
        text, variables = self._text, dict[str, Any](self.kwargs)
        if CLOCK in text:
            text = self._clock() + text
        try:
            rendered = self.tokenizer.apply_chat_template(
                turns, chat_template=text, tokenize=False, add_generation_prompt=more, **variables
            )
        except Exception as error:  # templates raise what they like
            raise UserError(f"the tokenizer's chat template cannot be used ({first_line(error)}); {REMEDY}") from None
        return str(rendered)

    def _clock(self) -> str:
        """A template's own definition of the function that tells the date, at midnight of the date that is set."""
        midnight = datetime.datetime.combine(self.date, datetime.time())
        values = [["%%", PERCENT], *([f"%-{code}", str(int(midnight.strftime(f"%{code}")))] for code in "dmjHIMSyY")]
        values += [[f"%{code}", midnight.strftime(f"%{code}")] for code in CODES]
        return MACRO.replace("CODES", repr([*values, [PERCENT, "%"]]))


def chat_template(
    tokenizer: PreTrainedTokenizerBase, kwargs: Mapping[str, TemplateValue] | None = None, date: datetime.date = DATE
) -> ChatTemplate | None:
    """The template of a tokenizer; None where it has none."""
    if getattr(tokenizer, "chat_template", None) is None:
        return None
    return ChatTemplate(tokenizer, kwargs or {}, date)
