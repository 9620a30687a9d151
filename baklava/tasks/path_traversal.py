"""Path traversal: a long answer, every line of which has to be looked up (LongProc, arXiv 2501.05414)."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, ClassVar

from pydantic import Field

from baklava.tasks.base import Count, CountTokens, Sample, Task
from baklava.tasks.metrics.route import END, START
from baklava.tasks.text.fit_length import fill_context
from baklava.tasks.text.noise import insert_needles, positions_at
from baklava.tasks.text.words import load_words

HEADER = "From each of these cities there is one way to go, in one direction only:\n"
QUESTION = (
    "Write down the route from {first} to {last}, each step on a line of its own, in order and in the words of the "
    f"list above. Begin with {START} and end with {END}.\n"
)
WAYS = ("bus", "train", "plane", "ferry")


@dataclass(frozen=True, kw_only=True)
class PathTraversal(Task):
    """Find the route of `n_steps` steps from one city to another in a list of connections, and write it down.

    The answer's length grows with `n_steps`; set `max_new_tokens` so that it fits. Steps lie at random places of the
    list in random order, or one after the other from `depth` on, the fraction of the other connections before them.

    The score is the fraction of the route that is right before the first mistake (`route`). As in LongProc, each city
    has one connection; its cities have the names of real ones, it writes the answer in other words than the list, and
    shows an example. So scores compare with no publication's.
    """

    family: ClassVar[str] = "path_traversal"

    n_steps: Count = 12
    depth: Annotated[float, Field(ge=0.0, le=1.0)] | None = None
    max_new_tokens: Count = 384

    def sample(self, *, split: str, seed: int, index: int, length: int, count_tokens: CountTokens) -> Sample:
        rng = self.random_stream(split=split, seed=seed, index=index)
        names = draw_names(rng)
        cities = [next(names) for _ in range(self.n_steps + 1)]
        route = [write_connection(a, b, rng) for a, b in pairwise(cities)]
        listed = rng.sample(route, len(route))
        seed_of_others = rng.getrandbits(64)

        def context(n: int) -> str:
            others_rng = random.Random(seed_of_others)
            others = draw_names(others_rng, avoid=cities)
            known = [*cities, *(next(others) for _ in range(n))]
            lines = [write_connection(name, others_rng.choice(known), others_rng) for name in known[len(cities) :]]
            positions = positions_at(self.depth, len(listed), n, split=split, index=index, rng=others_rng)
            return HEADER + "\n".join(insert_needles(listed, positions, lines)) + "\n\n"

        sample = Sample(
            index=index,
            context="",
            question=QUESTION.format(first=cities[0], last=cities[-1]),
            answer_prefix=f"{START}\n",
            answers=tuple(route),
            max_new_tokens=self.max_new_tokens,
        )
        return fill_context(
            sample, context, unit="other connections", task=self.name, length=length, count_tokens=count_tokens
        )

    def metric_name(self) -> str:
        return "route"

    def reference_answer(self, sample: Sample) -> str:
        return "\n".join((*sample.answers, END))


def draw_names(rng: random.Random, avoid: Sequence[str] = ()) -> Iterator[str]:
    """Draw different names without end: two English words, as in Velvet Harbour."""
    drawn = set(avoid)
    adjectives, nouns = load_words("adjectives"), load_words("nouns")
    while True:
        name = f"{rng.choice(adjectives)} {rng.choice(nouns)}".title()
        if name not in drawn:
            drawn.add(name)
            yield name


def write_connection(start: str, end: str, rng: random.Random) -> str:
    return f"From {start}, take a {rng.choice(WAYS)} to {end}."
