"""Texts as token ids: parts are cut as one text, special tokens stand before it and none after."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

PROBES = ("a", "1", ".")  # texts of a token or two
ANCHORS = ("\n", ".", "a", "1")  # stand before a text that goes on, so that it is not taken for a beginning


class Tokens(NamedTuple):
    """What is compressed, what is read after it, and the answer, where it is not generated but read too."""

    context: list[int]
    question: list[int]
    answer: list[int]

    @classmethod
    def of(cls, context: list[int], question: list[int], answer: list[int]) -> Tokens:
        """At least one token is read after compression, though it be the end of the context."""
        return cls(context, question, answer) if question else cls(context[:-1], context[-1:], answer)


class Encoder:
    """A tokenizer, as prompts need it."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self._tokenizer = tokenizer

    def ids(self, text: str, *, begin: bool = False) -> list[int]:
        """Tokens of a whole text; `begin` puts the tokenizer's special tokens before it, once, and none after it."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return [*self._before(ids), *ids] if begin else ids

    def parts(self, texts: Sequence[str], *, begin: bool = False) -> list[list[int]]:
        """Tokens of a text that is given in parts: together they are those of the whole.

        A token that reaches over the border of two parts belongs to the later one, so that no part holds anything of
        what comes after it.
        """
        whole = "".join(texts)
        ids = self.ids(whole)
        bounds = [0, *self._cuts(whole, ids, list(accumulate(map(len, texts)))[:-1]), len(ids)]
        first, *later = (ids[start:end] for start, end in pairwise(bounds))
        return [[*self._before(ids), *first] if begin else first, *later]

    def later(self, text: str) -> list[int]:
        """Tokens of a text that goes on after another: without the space that some tokenizers put before all texts."""
        if self._puts_space:
            for anchor in ANCHORS:
                before, after = self.parts([anchor, text])
                if before == self.ids(anchor):  # no token reaches over the border
                    return after
        return self.ids(text)

    def count(self, text: str) -> int:
        """Number of tokens of a whole text, those before it included."""
        return len(self.ids(text, begin=True))

    @cached_property
    def special(self) -> list[int]:
        """The special tokens that the tokenizer puts before a text, and not those that it may put after it."""
        for probe in PROBES:
            plain, whole = self.ids(probe), self._tokenizer.encode(probe)
            for start in range(len(whole) - len(plain) + 1):
                if plain and whole[start : start + len(plain)] == plain:
                    return list(whole[:start])
        return []

    def _before(self, ids: Sequence[int]) -> list[int]:
        """What is still to put before these; some texts and templates bring the token that begins a text themselves."""
        return [] if list(ids[: len(self.special)]) == self.special else self.special

    @cached_property
    def _puts_space(self) -> bool:
        return any(self.parts([ANCHORS[0], probe])[1] != self.ids(probe) for probe in PROBES)

    @cached_property
    def _places(self) -> Any:
        """The tokenizer's core where it tells the place of each token in the text, else None.

        A copy that does nothing after it has cut: some tokenizers would leave spaces out of the places.
        """
        if not getattr(self._tokenizer, "is_fast", False):
            return None
        try:
            core = copy.deepcopy(self._tokenizer.backend_tokenizer)
        except Exception:  # parts that are written in Python cannot be copied
            return None
        core.post_processor = None
        core.no_truncation()
        core.no_padding()
        return core

    def _cuts(self, whole: str, ids: list[int], borders: Sequence[int]) -> list[int]:
        """For each border, a place in the text, the number of tokens that end before or at it."""
        if self._places is not None:
            found = self._places.encode(whole, add_special_tokens=False)
            if found.ids == ids:
                ends = [end for _, end in found.offsets]
                return [next((n for n, end in enumerate(ends) if end > border), len(ids)) for border in borders]
        cuts = [_n_common(self.ids(whole[:border]), ids) for border in borders]
        return list(accumulate(cuts, max))


def _n_common(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of the longest common beginning: what a text and its own beginning are cut into alike."""
    both = enumerate(zip(one, other, strict=False))
    return next((n for n, (a, b) in both if a != b), min(len(one), len(other)))
