"""Chat templates: the same on every day, with the variables they are given, and never a changed text."""

from __future__ import annotations

import datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

from baklava.errors import DataError, UserError
from baklava.experiment.chat_settings import DATE
from baklava.models.chat import ChatTemplate
from baklava.training.tokenizer import build_tokenizer

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
LLAMA3 = (
    "{{- bos_token }}{%- if not date_string is defined %}{%- if strftime_now is defined %}"
    "{%- set date_string = strftime_now('%d %b %Y') %}{%- else %}{%- set date_string = '26 Jul 2024' %}{%- endif %}"
    "{%- endif %}Today Date: {{ date_string }}\n"
    "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}<|eot_id|>{% endfor %}{{ '<assistant>\n\n' }}"
)
IN_A_MACRO = (
    "{%- macro today() %}{{ strftime_now('%Y-%m-%d') }}{% endmacro %}\n"
    "  {{ today() }}, year {{ strftime_now('%Y') | int - 1 }}{% for m in messages %}[{{ m.content }}]{% endfor %}"
)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()


def template(tokenizer: PreTrainedTokenizerFast, text: Any, **more: Any) -> ChatTemplate:
    tokenizer.chat_template = text
    return ChatTemplate(tokenizer, **more)


def plain(tokenizer: PreTrainedTokenizerFast, text: str, **more: Any) -> str:
    """What transformers makes of the whole text."""
    turn = [{"role": "user", "content": text}]
    return str(tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True, **more))


@pytest.fixture(params=[1, 25], ids=["january", "later"])
def today(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> datetime.date:
    class Clock(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> Clock:
            return cls(2026, 1, request.param, 17, 5)

    monkeypatch.setattr(chat_template_utils, "datetime", Clock)
    return Clock.now().date()


class TestDate:
    @pytest.mark.parametrize(
        ("text", "written"),
        [
            (LLAMA3, "Today Date: 26 Jul 2024\n<user>C. Q?<|eot_id|><assistant>\n\n"),
            (IN_A_MACRO, "  2024-07-26, year 2023[C. Q?]"),
        ],
    )
    def test_every_day_is_the_day_that_is_set(self, tokenizer, today, text, written):
        assert "".join(template(tokenizer, text).wrap("C. ", "Q?")) == written
        other = template(tokenizer, text, date=today)
        assert "".join(other.wrap("C. ", "Q?")) == plain(tokenizer, "C. Q?") != written

    @pytest.mark.parametrize(
        "format",
        [
            "%d %b %Y",
            "%B %d, %Y",
            "%Y-%m-%d",
            "%A %-d %B",
            "%m/%d/%y",
            "%j %U %a",
            "100%% on %d",
            "%%d",
            "at %H:%M",
            "",
        ],
    )
    def test_formats_are_those_of_strftime(self, tokenizer, format):
        day = datetime.date(2025, 3, 4)
        made = template(tokenizer, "{{ strftime_now('" + format + "') }}|{{ messages[0].content }}", date=day)
        assert made.wrap("a ", "b")[0] == day.strftime(format) + "|a "

    @settings(max_examples=20, deadline=None)
    @given(day=st.dates(min_value=datetime.date(1900, 1, 1)))
    def test_any_date(self, tokenizer, day):
        made = template(tokenizer, LLAMA3, date=day)
        assert made.wrap("a ", "b")[0] == f"Today Date: {day.strftime('%d %b %Y')}\n<user>a "

    def test_a_variable_of_the_template_has_precedence(self, tokenizer):
        made = template(tokenizer, LLAMA3, kwargs={"date_string": "some day"})
        assert made.wrap("a ", "b")[0] == "Today Date: some day\n<user>a "

    def test_white_space_at_the_beginning_of_a_template_stays_as_it_is(self, tokenizer):
        for begin in ("\n", "  ", "\n  {%- if true %}x{% endif %}\n", "  {% if true %}\n  y{% endif %}", "{#- c -#} z"):
            body = begin + "{{ messages[0].content }}"
            with_date = template(tokenizer, body + "{{ strftime_now('') }}")
            assert "".join(with_date.wrap("a ", "b")) == plain(tokenizer, "a b", chat_template=body)

    def test_the_default_is_the_one_of_llamas_templates(self):
        assert DATE.strftime("%d %b %Y") == "26 Jul 2024"


class TestVariables:
    def test_they_reach_the_template(self, tokenizer):
        made = template(tokenizer, CHATML, kwargs={"enable_thinking": False})
        assert made.wrap("C. ", "Q?")[1] == "Q?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
        assert template(tokenizer, CHATML).wrap("C. ", "Q?")[1] == "Q?<|im_end|>\n<|im_start|>assistant\n"

    def test_one_that_it_does_not_read_is_refused(self, tokenizer):
        made = template(tokenizer, CHATML, kwargs={"enable_thinkin": False})
        with pytest.raises(DataError, match=r"^models\.mine\.chat_template_kwargs: .*reads no 'enable_thinkin'"):
            made.check("mine")
        template(tokenizer, CHATML, kwargs={"enable_thinking": False}).check("mine")


class TestText:
    @pytest.mark.parametrize(
        ("before", "after"),
        [("C. ", "Q?"), ("  C.\n", "\n Q? \n"), ("C. ", ""), ("", " Q?"), ("C.", " "), ("\n", "Q"), ("a", "a")],
    )
    @pytest.mark.parametrize("text", [CHATML, LLAMA3, IN_A_MACRO])
    def test_the_parts_are_what_the_template_makes_of_the_whole(self, tokenizer, text, before, after):
        """Some strip a turn: then its ends alone have lost their white space, as the whole text's would."""
        head, tail = template(tokenizer, text, date=datetime.date.today()).wrap(before, after)
        assert head + tail == plain(tokenizer, before + after)
        assert after.strip() in tail
        assert before.strip() in head

    @pytest.mark.parametrize(
        "text",
        [
            "{{ messages | length }}",
            "{{ messages[0].content }}{{ messages[0].content }}",
            "{{ messages[0].content | lower }}",
            "{{ messages[0].content | replace('. ', '.') }}",
            "{{ messages[0].content[:4] }}",
            "{{ messages[0].content | tojson }}",
        ],
    )
    def test_a_changed_text_is_refused(self, tokenizer, text):
        with pytest.raises(UserError, match=r"changes the text; set evaluate\.chat_template=false$"):
            template(tokenizer, text).wrap('The "grass". ', "What\nis it?")

    @pytest.mark.parametrize(
        ("text", "why"),
        [
            ("{{ raise_exception('a system role is needed') }}", "a system role is needed"),
            ("{% if %}", "Expected an expression"),
            ({"rag": "x", "tool_use": "y"}, "multiple chat templates with no default"),
        ],
    )
    def test_one_that_fails_is_refused_in_one_line(self, tokenizer, text, why):
        with pytest.raises(DataError, match=why) as error:
            template(tokenizer, text).check("mine")
        assert "\n" not in str(error.value)
        assert str(error.value).startswith("model mine: ")

    def test_of_several_the_default_is_taken(self, tokenizer):
        made = template(tokenizer, {"default": CHATML, "tool_use": "x"})
        assert made.wrap("C. ", "Q?")[0] == "<|im_start|>user\nC. "


@pytest.mark.parametrize(
    ("text", "end"),
    [
        (CHATML, "<|im_end|>\n"),
        (LLAMA3, "<|eot_id|><assistant>\n\n"),
        ("{{ messages[0].content }}", ""),
        ("{% if %}", ""),
    ],
)
def test_what_ends_the_models_turn(tokenizer, text, end):
    assert template(tokenizer, text).find_turn_end() == end
