"""Training documents of the reference models: token ids, each marked by whether the context determines it."""

from __future__ import annotations

import random
import string
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum

from transformers import PreTrainedTokenizerFast

from baklava.tasks.ruler import niah, vt
from baklava.tasks.text.noise import NOISE_LINE, hide_in_noise
from baklava.tasks.text.python_docs import load_english_text


class Mark(IntEnum):
    """The kind of a token, which decides its weight in the loss."""

    BACKGROUND = 0
    ANSWER = 1
    CHOICE = 2  # the first token of a value or a name: the model must find the right needle to predict it


@dataclass
class Document:
    """Token ids and the mark of each."""

    ids: list[int] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)

    def add(self, ids: list[int], mark: Mark = Mark.BACKGROUND) -> None:
        self.ids += ids
        self.marks += [mark] * len(ids)


class DocumentWriter:
    """Writes documents of several kinds, each at most `length` tokens long (`variables`: at least 160)."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast):
        self._tokenizer = tokenizer
        end, *characters = (
            tokenizer.get_vocab()[token] for token in (tokenizer.eos_token, *string.digits, *string.ascii_uppercase)
        )
        self._end: int = end
        self._noise_tokens = len(self._encode(NOISE_LINE + "\n"))
        digits, capitals = characters[:10], characters[10:]
        everything = [token for token in range(len(tokenizer)) if token != end]
        self._alphabets = (digits, capitals, everything, everything)
        self._copied = {*digits, *capitals}

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False)

    def _add_answer(self, document: Document, ids: list[int]) -> None:
        document.add(ids, Mark.ANSWER)
        first = len(document.ids) - len(ids)
        for i, token in enumerate(ids):
            if token in self._copied and (i == 0 or ids[i - 1] not in self._copied):
                document.marks[first + i] = Mark.CHOICE

    def repetition(self, length: int, rng: random.Random) -> Document:
        """Repeat a random sequence with a random period: the dense signal from which copying is learnt."""
        period = rng.randint(4, max(4, min(length // 2, 60) if rng.random() < 0.7 else length // 2))
        alphabet = rng.choice(self._alphabets)
        base = rng.choices(alphabet, k=period)
        document = Document()
        document.add([*base, *base[:2]])
        document.add((base * (length // period + 1))[2:], Mark.ANSWER)
        document.ids, document.marks = document.ids[:length], document.marks[:length]
        return document

    def english(self, length: int, rng: random.Random) -> Document:
        """Cut a window out of ordinary English."""
        text = load_english_text()
        start = rng.randrange(len(text) - 6 * length)
        document = Document()
        document.add(self._encode(text[start : start + 6 * length])[:length])
        return document

    def single_needles(self, length: int, rng: random.Random) -> Document:
        """Hide needles of different keys in noise, then ask for one key per question."""
        n_keys = rng.randint(1, 8) if length >= 500 and rng.random() < 0.3 else rng.randint(2, 4)
        keys = niah.draw_word_keys(n_keys, rng)
        pairs = [(key, str(rng.randint(1_000_000, 9_999_999))) for key in keys]
        order = rng.sample(pairs, len(pairs))
        return self._write_questions(length, rng, pairs, [[key] for key, _ in order], [(value,) for _, value in order])

    def listed_needles(self, length: int, rng: random.Random) -> Document:
        """Hide needles of one or several keys in noise, then ask for all in one question; answers in text order."""
        n = 4 if rng.random() < 0.8 else rng.randint(2, 3)
        distinct = niah.draw_word_keys(n, rng)
        keys = distinct if rng.random() < 0.5 else distinct[:1] * n
        pairs = [(key, str(rng.randint(1_000_000, 9_999_999))) for key in keys]
        asked = rng.sample(distinct, n) if keys == distinct else keys[:1]
        return self._write_questions(length, rng, pairs, [asked], [tuple(value for _, value in pairs)])

    def many_needles(self, length: int, rng: random.Random) -> Document:
        """Like `single_needles`, with so many keys that half of the document is questions and answers."""
        most = max(2, length // 64)  # a needle, its question and its answer take about 64 tokens
        keys = niah.draw_word_keys(rng.randint(max(2, most // 2), most), rng)
        pairs = [(key, str(rng.randint(1_000_000, 9_999_999))) for key in keys]
        order = rng.sample(pairs, len(pairs))
        return self._write_questions(length, rng, pairs, [[key] for key, _ in order], [(value,) for _, value in order])

    def many_lists(self, length: int, rng: random.Random) -> Document:
        """Like `listed_needles`, with several questions: each for the values of one key or of several keys."""
        n_lists = max(1, min(4, length // 256))
        keys = niah.draw_word_keys(n_lists * 4, rng)
        if rng.random() < 0.5:
            rounds = [[key] for key in keys[:n_lists]]
            pairs = [(key, str(rng.randint(1_000_000, 9_999_999))) for [key] in rounds for _ in range(4)]
        else:
            rounds = [keys[4 * i : 4 * i + 4] for i in range(n_lists)]
            pairs = [(key, str(rng.randint(1_000_000, 9_999_999))) for key in keys]
        rng.shuffle(pairs)
        return self._write_questions(length, rng, pairs, rounds, [niah.select_values(asked, pairs) for asked in rounds])

    def _write_questions(
        self,
        length: int,
        rng: random.Random,
        pairs: list[tuple[str, str]],
        rounds: list[list[str]],
        answers: list[tuple[str, ...]],
    ) -> Document:
        """Hide needles for `pairs` in noise and append as many rounds of question and answer as fit."""
        needles = [niah.write_needle(key, value) for key, value in pairs]
        plural = len(answers[0]) > 1
        header = niah.write_header(plural=plural)
        room = length - len(self._encode(header + "\n".join(needles) + "\n"))
        encoded: list[tuple[list[int], list[int]]] = []
        for asked, values in zip(rounds, answers, strict=True):
            question = self._encode("".join(niah.write_question(asked, plural=plural)))
            answer = [*self._encode(niah.write_answer(values)), self._end]
            if encoded and len(question) + len(answer) > room:
                break
            room -= len(question) + len(answer)
            encoded.append((question, answer))

        document = Document()
        context = header + hide_in_noise(needles, max(0, room // self._noise_tokens), rng) + "\n"
        document.add(self._encode(context))
        for question, answer in encoded:
            document.add(question)
            self._add_answer(document, answer)
        return document

    def short_recall(self, length: int, rng: random.Random) -> Document:
        """List word keys with short values, then the same keys again, in the words of the needle or of the question."""
        lead = rng.choice(("", "", "numbers for ", "One of the special magic numbers for "))
        stated, asked = " is: ", rng.choice((" is: ", " mentioned in the provided text is "))
        room = length
        keys = niah.draw_word_keys(rng.randint(2, 6), rng)
        pairs = [(key, str(rng.randrange(10, 100))) for key in keys]
        document = Document()
        for key, value in pairs:
            document.add(self._encode(f"{lead}{key}{stated}{value}\n"))
        while True:
            key, value = rng.choice(pairs)
            question, answer = self._encode(f"{lead}{key}{asked}"), self._encode(f"{value}\n")
            if len(document.ids) + len(question) + len(answer) > room:
                return document
            document.add(question)
            self._add_answer(document, answer)

    def variables(self, length: int, rng: random.Random) -> Document:
        """Hide a chain of assignments in noise, after a solved example where both fit."""
        room = length
        n_hops = 4 if length >= 288 else rng.randint(1, 2)
        chains = [vt.Chain.draw(n_hops=n_hops, n_letters=5, rng=rng)]
        if length >= 512 and rng.random() < 0.8:
            chains.insert(0, vt.Chain.draw(n_hops=n_hops, n_letters=3, rng=rng))
        room -= sum(
            len(self._encode(vt.HEADER + "\n".join(chain.statements()) + "\n" + "".join(chain.question()))) + 32
            for chain in chains
        )
        n_lines = max(0, room // self._noise_tokens)
        document = Document()
        for left, chain in zip(range(len(chains) - 1, -1, -1), chains, strict=True):
            share = min(n_lines // 2, rng.randint(0, 14)) if left else n_lines
            n_lines -= share
            context = vt.HEADER + hide_in_noise(chain.statements(), share, rng) + "\n"
            document.add(self._encode(context))
            document.add(self._encode("".join(chain.question())))
            self._add_answer(document, self._encode(chain.answer()))
            document.add(self._encode("\n\n") if left else [self._end], Mark.BACKGROUND if left else Mark.ANSWER)
        return document

    def kinds(self) -> dict[str, Callable[[int, random.Random], Document]]:
        return {
            "repetition": self.repetition,
            "english": self.english,
            "single_needles": self.single_needles,
            "listed_needles": self.listed_needles,
            "many_needles": self.many_needles,
            "many_lists": self.many_lists,
            "short_recall": self.short_recall,
            "variables": self.variables,
        }
