"""Training documents whose answers are looked up step by step: pairs and threads of a JSON object, routes in a list."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import pairwise

from baklava.tasks import json_kv, path_traversal
from baklava.tasks.metrics.route import END, START
from baklava.training.documents import Document, DocumentWriter, Mark

STEP_TOKENS = 26  # of a connection, about


class LookupWriter(DocumentWriter):
    """Writes the documents of `DocumentWriter` and those whose answers are looked up step by step."""

    def pairs(self, length: int, rng: random.Random) -> Document:
        """Write a JSON object of UUIDs, then ask for values of its keys."""
        return self._write_object(length, rng, n_hops=1, short=False)

    def short_pairs(self, length: int, rng: random.Random) -> Document:
        """Like `pairs`, with beginnings of UUIDs."""
        return self._write_object(length, rng, n_hops=1, short=True)

    def threads(self, length: int, rng: random.Random) -> Document:
        """Write a JSON object with threads of two or three steps, then ask for the values on the way, and others."""
        return self._write_object(length, rng, n_hops=rng.choice((2, 3)), short=False)

    def short_threads(self, length: int, rng: random.Random) -> Document:
        """Like `threads`, with beginnings of UUIDs."""
        return self._write_object(length, rng, n_hops=rng.choice((2, 3)), short=True)

    def _write_object(self, length: int, rng: random.Random, *, n_hops: int, short: bool) -> Document:
        n_digits = rng.choice((4, 6, 8)) if short else 36
        pair_tokens = 2 * n_digits + 6
        most = (length - 60 - n_hops * pair_tokens) // pair_tokens  # leaves room for one question
        n_pairs = rng.randint(max(n_hops, most // 2), max(n_hops, most))
        n_threads = 0 if n_hops == 1 else 1
        if n_threads and rng.random() < 0.5:
            n_threads = rng.randint(1, n_pairs // n_hops)
        drawn: dict[str, None] = {}  # a set would give them in an order that differs between processes
        while len(drawn) < n_threads * (n_hops + 1) + 2 * n_pairs:
            drawn[json_kv.draw_uuid(rng)[:n_digits]] = None
        ids = iter(drawn)
        threads = [[next(ids) for _ in range(n_hops + 1)] for _ in range(n_threads)]
        pairs = [pair for thread in threads for pair in pairwise(thread)]
        pairs += [(next(ids), next(ids)) for _ in range(n_pairs - len(pairs))]
        rng.shuffle(threads)
        rng.shuffle(pairs)
        document = Document()
        document.add(self._encode(json_kv.write_object(pairs, [], [0] * len(pairs))))
        questions = [(json_kv.WRITE_STEPS, key, values) for key, *values in threads]
        questions += [(json_kv.LOOK_UP, key, [value]) for key, value in rng.sample(pairs, len(pairs))]
        for text, key, values in questions:
            question = self._encode(text.format(key=key) + json_kv.ANSWER_PREFIX)
            answers = [self._encode(f'{value}".{json_kv.ANSWER_PREFIX}') for value in values[:-1]]
            answers.append([*self._encode(f'{values[-1]}".'), self._end])
            if len(document.ids) + len(question) + sum(map(len, answers)) > length:
                break
            document.add(question)
            for answer in answers:
                self._add_lookup(document, answer)
        return document

    def routes(self, length: int, rng: random.Random) -> Document:
        """Write a list of connections, then the route from one city to another, step by step."""
        most = min(14, (length - 150) // (2 * STEP_TOKENS))
        names = path_traversal.draw_names(rng)
        cities = [next(names) for _ in range(rng.randint(1, most) + 1 if rng.random() < 0.7 else most + 1)]
        route = [path_traversal.write_connection(a, b, rng) for a, b in pairwise(cities)]
        question = self._encode(
            path_traversal.QUESTION.format(first=cities[0], last=cities[-1]) + f"{START}\n",
        )
        answer = Document()
        for step in route:
            start, _, end = step.partition(" take a ")
            way, _, city = end.partition(" to ")
            answer.add(self._encode(f"{start} take a"), Mark.ANSWER)
            self._add_lookup(answer, self._encode(f" {way}"))
            answer.add(self._encode(" to"), Mark.ANSWER)
            answer.add(self._encode(" "), Mark.ANSWER)
            self._add_lookup(answer, self._encode(f" {city}\n")[1:])
        answer.add([*self._encode(END), self._end], Mark.ANSWER)

        room = length - len(self._encode(path_traversal.HEADER + "\n".join(route) + "\n\n"))
        room -= len(question) + len(answer.ids)
        lines, known = list(route), list(cities)
        for name in names:
            line = path_traversal.write_connection(name, rng.choice(known), rng)
            room -= len(self._encode(line + "\n"))
            if room < 0:
                break
            known.append(name)
            lines.append(line)
        rng.shuffle(lines)
        document = Document()
        document.add(self._encode(path_traversal.HEADER + "\n".join(lines) + "\n\n"))
        document.add(question)
        document.ids += answer.ids
        document.marks += answer.marks
        return document

    def _add_lookup(self, document: Document, ids: list[int]) -> None:
        """Add an answer whose first token says whether the place was found."""
        document.add(ids[:1], Mark.CHOICE)
        document.add(ids[1:], Mark.ANSWER)

    def kinds(self) -> dict[str, Callable[[int, random.Random], Document]]:
        return super().kinds() | {
            "pairs": self.pairs,
            "short_pairs": self.short_pairs,
            "threads": self.threads,
            "short_threads": self.short_threads,
            "routes": self.routes,
        }
