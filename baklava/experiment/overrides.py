"""Overrides as users write them, KEY=VALUE: splitting them, and quoting them so that Hydra reads what is meant."""

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
        """The parts of an override; None if it has no value."""
        match = _OVERRIDE.fullmatch(override)
        return None if match is None else cls(*match.groups())

    def __str__(self) -> str:
        return f"{self.sign}{self.key}={self.value}"


def split(text: str) -> list[str]:
    """Split a text such as `name=mine tasks.mine.data='my file.jsonl' ratios=[0, 0.5]` into its overrides.

    It is split at the spaces before each KEY=, so that a value may hold spaces; within quotes and brackets a value may
    hold ` KEY=` too.
    """
    overrides, remainder = [], text.strip()
    while remainder:
        key = re.match(rf"(?:{_SIGN})[\w.@/-]+=", remainder)
        inside = 0 if key is None else _enclosed(remainder, key.end())
        end = _NEXT.search(remainder, inside)
        overrides.append(remainder[: end.start()] if end else remainder)
        remainder = remainder[end.end() :] if end else ""
    return overrides


def joined(overrides: Sequence[str]) -> str:
    """The text that `split` turns into these overrides; a value is quoted where it would be split."""
    return " ".join(map(_unsplit, overrides))


def _unsplit(override: str) -> str:
    parts = Parts.of(override)
    if parts is None or split(override) == [override]:
        return override
    return str(parts._replace(value=quoted(parts.value)))


def _enclosed(text: str, start: int) -> int:
    """The end of the quotes or brackets that open at `start`; `start` if none open there, or if they stay open."""
    quoted = _QUOTED.match(text, start)
    if quoted is not None:
        return quoted.end()
    for index, open_brackets in _depths(text, start):
        if not open_brackets:
            return index + 1 if index > start else start
    return start


def _depths(text: str, start: int) -> Iterator[tuple[int, list[str]]]:
    """Yield the index of each character from `start` on and the closing brackets due after it; a quoted text is one."""
    open_brackets: list[str] = []
    index = start
    while index < len(text):
        quoted = _QUOTED.match(text, index) if open_brackets else None
        if quoted is not None:
            index = quoted.end() - 1
        elif text[index] in _PAIRS:
            open_brackets.append(_PAIRS[text[index]])
        elif open_brackets and text[index] == open_brackets[-1]:
            open_brackets.pop()
        yield index, open_brackets
        index += 1


def items(value: str) -> list[str] | None:
    """The items of a list such as `[1e3, 'a,b', {c: d}]`, as they are written; None for any other value."""
    value = value.strip()
    if not (value.startswith("[") and value.endswith("]")):
        return None
    cuts = [0, *(index for index, depth in _depths(value, 0) if len(depth) == 1 and value[index] == ","), -1]
    written = [value[left + 1 : right].strip() for left, right in pairwise(cuts)]
    return [] if written == [""] else written


def quoted(text: str) -> str:
    """Quote a text so that Hydra reads it as it is, whatever characters it holds."""
    from hydra.core.override_parser.types import Quote, QuotedString

    return str(QuotedString(text, Quote.single).with_quotes())


def readable(overrides: Sequence[str], conf: Path) -> list[str]:
    """Quote each value that Hydra's grammar cannot express, such as `/data/a=b (1).txt`.

    The choice of a file in the folder `conf`, such as `model=20241125`, is a text whatever it looks like. Several
    values for one setting (`ratios=0,0.5`) are quoted too, as there is one experiment at a time.
    """
    return [str(_readable(parts, conf)) if (parts := Parts.of(override)) else override for override in overrides]


def _readable(parts: Parts, conf: Path) -> Parts:
    value = _parsed(parts.value)
    group = parts.key.partition("@")[0]
    if group and (conf / group).is_dir():
        written = items(parts.value)
        if written is not None and isinstance(value, list):
            return parts._replace(value=f"[{','.join(map(_text, written))}]")
        return parts if value is Ellipsis or isinstance(value, dict) else parts._replace(value=_text(parts.value))
    return parts._replace(value=quoted(parts.value.strip())) if value is Ellipsis else parts


def _text(value: str) -> str:
    """Quote a value unless Hydra reads a text already."""
    return value if isinstance(_parsed(value), str) else quoted(value.strip())


def parsed_value(value: str) -> Any:
    """What a value means: what Hydra reads in it, else the text itself."""
    parsed = _parsed(value)
    return value.strip() if parsed is Ellipsis else parsed


def _parsed(value: str) -> Any:
    """What Hydra reads in a value; the ellipsis where it cannot read it, or reads several values."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    try:
        parsed = OverridesParser.create().parse_override(f"key={value}")
    except Exception:  # Hydra's, and Python's for a number of 5000 digits
        return Ellipsis
    return Ellipsis if parsed.is_sweep_override() else parsed.value()


def named(overrides: Sequence[str], sections: Sequence[str], mappings: re.Pattern[str]) -> tuple[list[str], list[str]]:
    """Separate the overrides that Hydra cannot apply, returned second, from all others.

    They are those inside one of the sections (`models.NAME.path=...`), as a name may hold dots or look like a number,
    which Hydra's grammar of keys cannot express, and those that set one of `mappings`, whose keys are the user's own.
    """
    below = tuple(f"{section}." for section in sections)
    inside = [
        override
        for override in overrides
        if override.lstrip("+~").startswith(below) or mappings.fullmatch(override.partition("=")[0])
    ]
    return [override for override in overrides if override not in inside], inside


def apply(override: str, config: DictConfig, sections: Sequence[str], mappings: re.Pattern[str]) -> None:
    """Apply an override that `named` returns second, as Hydra would, to a composed configuration.

    A mapping whose keys are the user's own is replaced, where Hydra would refuse a new key, and keep the old ones.
    """
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from omegaconf import OmegaConf, open_dict

    match = re.fullmatch(rf"({_SIGN})([^=]*)(=.*)?", override, re.DOTALL)
    assert match is not None  # its sections begin with letters
    sign, key, value = match.groups()
    section = next((section for section in sections if key.startswith(f"{section}.")), key.rpartition(".")[0])
    below = key.removeprefix(f"{section}.")
    names = [name for name in OmegaConf.select(config, section) or () if isinstance(name, str)]
    known = [name for name in names if f"{below}.".startswith(f"{name}.")]
    parsed = OverridesParser.create().parse_override(f"{sign}key{value or ''}")
    is_free = mappings.fullmatch(key) is not None
    is_new = isinstance(parsed.value(), dict) and not is_free  # what comes under a new name is a mapping
    name = max(known, key=len, default=below if is_new else "")
    if sign == "~" and below == name:
        with open_dict(config):
            del OmegaConf.select(config, section)[name]
        return
    if "." in name:
        key = f"{section}[{name}]{below.removeprefix(name)}"
    if is_free and not sign and OmegaConf.select(config, key.rpartition(".")[0]) is not None:
        OmegaConf.update(config, key, parsed.value(), merge=False, force_add=True)
        return
    ConfigLoaderImpl._apply_overrides_to_config([replace(parsed, key_or_group=key, input_line=override)], config)


def as_text(overrides: Sequence[str], key: str, item: int | None = None) -> list[str]:
    """Quote the value of `key`, or one item of it, in the overrides: a name such as 20241125, 1e3 or true."""
    return [str(_as_text(parts, item)) if (parts := _of(override, key)) else override for override in overrides]


def _of(override: str, key: str) -> Parts | None:
    parts = Parts.of(override)
    return parts if parts is not None and parts.key == key and parts.sign != "~" else None


def _as_text(parts: Parts, item: int | None) -> Parts:
    if item is None:
        return parts._replace(value=_text(parts.value))
    written = items(parts.value)
    if written is None or item >= len(written):
        return parts
    written[item] = _text(written[item])
    return parts._replace(value=f"[{','.join(written)}]")


def chosen(overrides: Sequence[str], group: str) -> str | None:
    """The last choice from a group, as in `experiment=NAME`, without quotes; None if there is none."""
    choices = [parts.value for override in overrides if (parts := Parts.of(override)) and parts.key == group]
    return choices[-1].strip().strip("'\"") if choices else None
