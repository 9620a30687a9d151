"""Encodes texts that come in parts: the tokens are those of the joined text, with special tokens before it only."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

PROBES = ("a", "1", ".")  # texts of one or two tokens
ANCHORS = ("\n", ".", "a", "1")  # put before a continuation, so that it is not encoded as the start of a text


class Tokens(NamedTuple):
    """The context, which is compressed, the question read after it, and the answer where it is read, not generated.

    Where earlier questions and answers come before it, they are part of the question, and `steps` are the numbers of
    tokens that are read at a time: a question, or a token of an answer.
    """

    context: list[int]
    question: list[int]
    answer: list[int]
    steps: tuple[int, ...] = ()

    @classmethod
    def of(cls, context: list[int], question: list[int], answer: list[int]) -> Tokens:
        """An empty question becomes the last token of the context: something must be read after compression."""
        return cls(context, question, answer) if question else cls(context[:-1], context[-1:], answer)

    @classmethod
    def of_turns(cls, context: list[int], turns: Sequence[list[int]]) -> Tokens:
        """Tokens of a conversation: question, answer, question, answer and so on, and the last question."""
        first = cls.of(context, turns[0], [])
        steps = [len(first.question)]
        for answer, question in zip(turns[1::2], turns[2::2], strict=True):
            steps += [*[1] * len(answer), len(question)]
        question = [*first.question, *(token for turn in turns[1:] for token in turn)]
        return cls(first.context, question, [], tuple(step for step in steps if step))


class Encoder:
    """A tokenizer with what prompts need: parts, continuations and special tokens before a text only."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self._tokenizer = tokenizer

    def encode(self, text: str, *, begin: bool = False) -> list[int]:
        """Tokens of a complete text; `begin` puts the tokenizer's special tokens before it once, and none after it."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return [*self._missing_special(ids), *ids] if begin else ids

    def encode_parts(self, parts: Sequence[str], *, begin: bool = False) -> list[list[int]]:
        """Tokens of each part of a text: together they are the tokens of the joined text.

        A token that crosses the border of two parts belongs to the later part, so that no part contains anything of
        what follows it.
        """
        text = "".join(parts)
        ids = self.encode(text)
        borders = list(accumulate(map(len, parts)))[:-1]
        bounds = [0, *self._count_before(text, ids, borders), len(ids)]
        first, *later = (ids[start:end] for start, end in pairwise(bounds))
        return [[*self._missing_special(ids), *first] if begin else first, *later]

    def encode_continuation(self, text: str) -> list[int]:
        """Tokens of a text that continues another, without the space that some tokenizers put before every text."""
        if self._puts_space:
            for anchor in ANCHORS:
                before, after = self.encode_parts([anchor, text])
                if before == self.encode(anchor):  # no token crosses the border
                    return after
        return self.encode(text)

    def count(self, text: str) -> int:
        """Number of tokens of a complete text, including the special tokens before it."""
        return len(self.encode(text, begin=True))

    @cached_property
    def special(self) -> list[int]:
        """The special tokens that the tokenizer puts before a text, without those that it may put after it."""
        for probe in PROBES:
            plain, framed = self.encode(probe), self._tokenizer.encode(probe)
            for start in range(len(framed) - len(plain) + 1):
                if plain and framed[start : start + len(plain)] == plain:
                    return list(framed[:start])
        return []

    def _missing_special(self, ids: Sequence[int]) -> list[int]:
        """The special tokens to put before `ids`; none where a text or a template starts with them already."""
        return [] if list(ids[: len(self.special)]) == self.special else self.special

    @cached_property
    def _puts_space(self) -> bool:
        return any(self.encode_parts([ANCHORS[0], probe])[1] != self.encode(probe) for probe in PROBES)

    @cached_property
    def _offset_tokenizer(self) -> Any:
        """A copy of the fast tokenizer that reports each token's offsets in the text; None where there is none.

        The copy does no post-processing: with it, some tokenizers would leave spaces out of the offsets.
        """
        if not getattr(self._tokenizer, "is_fast", False):
            return None
        try:
            core = copy.deepcopy(self._tokenizer.backend_tokenizer)
        except Exception:  # components that are written in Python cannot be copied
            return None
        core.post_processor = None
        core.no_truncation()
        core.no_padding()
        return core

    def _count_before(self, text: str, ids: list[int], borders: Sequence[int]) -> list[int]:
        """For each border (an index into the text), the number of tokens that end before or at it."""
        if self._offset_tokenizer is not None:
            encoding = self._offset_tokenizer.encode(text, add_special_tokens=False)
            if encoding.ids == ids:
                ends = [end for _, end in encoding.offsets]
                return [next((n for n, end in enumerate(ends) if end > border), len(ids)) for border in borders]
        counts = [_count_common(self.encode(text[:border]), ids) for border in borders]
        return list(accumulate(counts, max))


def _count_common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the longest common prefix: the tokens that a text and its own beginning share."""
    pairs = enumerate(zip(a, b, strict=False))
    return next((n for n, (x, y) in pairs if x != y), min(len(a), len(b)))
