"""What a user writes as KEY=VALUE: split, and put so that Hydra reads it as it is meant."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from omegaconf import DictConfig

_SIGN = r"~|\+{0,2}"
_OVERRIDE = re.compile(rf"({_SIGN})([^=]*)=(.*)", re.DOTALL)
_NEXT = re.compile(r"\s+(?=~|\+*[\w.@/-]+=)")  # where another override may begin
# As Hydra has it: a quote at the end counts unless an odd number of backslashes stands before it.
_QUOTED = re.compile(r"""'(?:(?:\\\\)*|.*?[^\\](?:\\\\)*)'|"(?:(?:\\\\)*|.*?[^\\](?:\\\\)*)\"""", re.DOTALL)
_PAIRS = {"[": "]", "{": "}", "(": ")"}


class Parts(NamedTuple):
    """An override `KEY=VALUE`, with a sign before it: `+` and `++` add, `~` takes away."""

    sign: str
    key: str
    value: str

    @classmethod
    def of(cls, override: str) -> Parts | None:
        """None for one without a value."""
        found = _OVERRIDE.fullmatch(override)
        return None if found is None else cls(*found.groups())

    def __str__(self) -> str:
        return f"{self.sign}{self.key}={self.value}"


def split(text: str) -> list[str]:
    """The overrides in a text such as `name=mine tasks.mine.data='my file.jsonl' ratios=[0, 0.5]`.

    They are parted at the spaces before each KEY=, so that a value may hold spaces; within quotes and brackets it may
    hold ` KEY=` too.
    """
    found, rest = [], text.strip()
    while rest:
        key = re.match(rf"(?:{_SIGN})[\w.@/-]+=", rest)
        inside = 0 if key is None else _enclosed(rest, key.end())
        end = _NEXT.search(rest, inside)
        found.append(rest[: end.start()] if end else rest)
        rest = rest[end.end() :] if end else ""
    return found


def joined(overrides: Sequence[str]) -> str:
    """The text that `split` parts into these overrides, with quotes where it would part one of them."""
    whole = ((one, Parts.of(one)) for one in overrides)
    return " ".join(
        one if parts is None or split(one) == [one] else str(parts._replace(value=quoted(parts.value)))
        for one, parts in whole
    )


def _enclosed(text: str, start: int) -> int:
    """Where the quotes or brackets end that open at `start`; `start` where nothing does, or where they stay open."""
    quoted = _QUOTED.match(text, start)
    if quoted is not None:
        return quoted.end()
    for place, open_brackets in _depths(text, start):
        if not open_brackets:
            return place + 1 if place > start else start
    return start


def _depths(text: str, start: int) -> Iterator[tuple[int, list[str]]]:
    """Per character from `start` on, what closes the brackets that are open after it; quotes are taken as one."""
    open_brackets: list[str] = []
    place = start
    while place < len(text):
        quoted = _QUOTED.match(text, place) if open_brackets else None
        if quoted is not None:
            place = quoted.end() - 1
        elif text[place] in _PAIRS:
            open_brackets.append(_PAIRS[text[place]])
        elif open_brackets and text[place] == open_brackets[-1]:
            open_brackets.pop()
        yield place, open_brackets
        place += 1


def items(value: str) -> list[str] | None:
    """The items of a list such as `[1e3, 'a,b', {c: d}]` as they are written; None for another value."""
    value = value.strip()
    if not (value.startswith("[") and value.endswith("]")):
        return None
    cuts = [0, *(place for place, depth in _depths(value, 0) if len(depth) == 1 and value[place] == ","), -1]
    found = [value[left + 1 : right].strip() for left, right in pairwise(cuts)]
    return [] if found == [""] else found


def quoted(text: str) -> str:
    """As Hydra reads a text whatever is in it."""
    from hydra.core.override_parser.types import Quote, QuotedString

    return str(QuotedString(text, Quote.single).with_quotes())


def readable(overrides: Sequence[str], conf: Path) -> list[str]:
    """The overrides with quotes around each value that Hydra's grammar has no form for, such as `/data/a=b (1).txt`.

    A choice of a file in the folder `conf`, such as `model=20241125`, is a text whatever it looks like. Of one
    setting, several values (`ratios=0,0.5`) are no form either: there is one experiment at a time.
    """
    return [str(_readable(parts, conf)) if (parts := Parts.of(one)) else one for one in overrides]


def _readable(parts: Parts, conf: Path) -> Parts:
    value = _parsed(parts.value)
    group = parts.key.partition("@")[0]
    if group and (conf / group).is_dir():
        some = items(parts.value)
        if some is not None and isinstance(value, list):
            return parts._replace(value=f"[{','.join(map(_text, some))}]")
        return parts if value is Ellipsis or isinstance(value, dict) else parts._replace(value=_text(parts.value))
    return parts._replace(value=quoted(parts.value.strip())) if value is Ellipsis else parts


def _text(value: str) -> str:
    """A value in quotes unless it is a text already."""
    return value if isinstance(_parsed(value), str) else quoted(value.strip())


def _parsed(value: str) -> Any:
    """What Hydra makes of a value; the ellipsis for what it cannot read, or takes for several values."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    try:
        found = OverridesParser.create().parse_override(f"key={value}")
    except Exception:  # of Hydra's, and of Python's for a number of 5000 digits
        return Ellipsis
    return Ellipsis if found.is_sweep_override() else found.value()


def named(overrides: Sequence[str], sections: Sequence[str]) -> tuple[list[str], list[str]]:
    """The overrides of what lies in one of the sections (`models.NAME.path=...`), and before them all others.

    A name may hold dots and look like a number, which Hydra's grammar of keys has no form for.
    """
    below = tuple(f"{section}." for section in sections)
    inside = [one for one in overrides if one.lstrip("+~").startswith(below)]
    return [one for one in overrides if one not in inside], inside


def apply(override: str, config: DictConfig, sections: Sequence[str]) -> None:
    """Change a composed configuration as Hydra would, by an override whose key goes through a name in a section."""
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from omegaconf import OmegaConf, open_dict

    found = re.fullmatch(rf"({_SIGN})([^=]*)(=.*)?", override, re.DOTALL)
    assert found is not None  # its sections begin with letters
    sign, key, value = found.groups()
    section = next(one for one in sections if key.startswith(f"{one}."))
    rest = key.removeprefix(f"{section}.")
    names = [name for name in OmegaConf.select(config, section) or () if isinstance(name, str)]
    there = [name for name in names if f"{rest}.".startswith(f"{name}.")]
    parsed = OverridesParser.create().parse_override(f"{sign}key{value or ''}")
    name = max(there, key=len, default=rest if isinstance(parsed.value(), dict) else "")  # a new one comes whole
    if sign == "~" and rest == name:
        with open_dict(config):
            del OmegaConf.select(config, section)[name]
        return
    if "." in name:
        key = f"{section}[{name}]{rest.removeprefix(name)}"
    ConfigLoaderImpl._apply_overrides_to_config([replace(parsed, key_or_group=key, input_line=override)], config)


def as_text(overrides: Sequence[str], key: str, item: int | None = None) -> list[str]:
    """The overrides with the value of `key` in quotes, or one item of it: a name such as 20241125, 1e3 or true."""
    return [str(_as_text(parts, item)) if (parts := _of(one, key)) else one for one in overrides]


def _of(override: str, key: str) -> Parts | None:
    parts = Parts.of(override)
    return parts if parts is not None and parts.key == key and parts.sign != "~" else None


def _as_text(parts: Parts, item: int | None) -> Parts:
    if item is None:
        return parts._replace(value=_text(parts.value))
    some = items(parts.value)
    if some is None or item >= len(some):
        return parts
    some[item] = _text(some[item])
    return parts._replace(value=f"[{','.join(some)}]")


def chosen(overrides: Sequence[str], group: str) -> str | None:
    """The choice of a group, as in `experiment=NAME`, without quotes: the last one counts."""
    found = [parts.value for one in overrides if (parts := Parts.of(one)) and parts.key == group]
    return found[-1].strip().strip("'\"") if found else None
