"""GraphWalks: operations on a directed graph that is given as a list of edges (openai/graphwalks)."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from baklava.tasks.base import Count, CountTokens, Sample, Task
from baklava.tasks.metrics.node_f1 import FINAL_ANSWER
from baklava.tasks.text.fit_length import fill_context
from baklava.tasks.text.noise import insert_needles, positions_at

HEADER = "These are the edges of a directed graph, one on each line:\n"
QUESTIONS = {
    "bfs": (
        "Do a breadth-first search from node {node}. Which nodes are first reached at depth {depth}, after {depth} "
        "edges and no fewer?"
    ),
    "parents": "Which nodes are parents of node {node}, that is, have an edge that leads to it?",
}
FORM = f" List them on one line, as in `{FINAL_ANSWER} [node, node]`.\n"

Edge = tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class GraphWalks(Task):
    """Name the nodes at depth `bfs_depth` of a breadth-first search, or the `n_nodes` parents of a node.

    Every layer of the search has `n_nodes` nodes. The edges that matter lie at random places of the list in random
    order, or one after the other from `depth` on, the fraction of the other edges before them. Other edges join nodes
    that the search does not reach, or lead to those that it does.

    Nodes are ten hexadecimal digits, operations and score (F1 of the set) are those published, but for empty lines
    after the answer, which do not count here; the published prompts show solved examples and ask in other words, so
    scores compare with no publication's.
    """

    family: ClassVar[str] = "graphwalks"

    operation: Literal["bfs", "parents"] = "bfs"
    bfs_depth: Count = 2
    n_nodes: Count = 3
    depth: Annotated[float, Field(ge=0.0, le=1.0)] | None = None
    max_new_tokens: Count = 64

    def sample(self, *, split: str, seed: int, index: int, length: int, count_tokens: CountTokens) -> Sample:
        rng = self.random_stream(split=split, seed=seed, index=index)
        nodes = _draw_nodes(rng)
        start = next(nodes)
        n_layers = self.bfs_depth if self.operation == "bfs" else 1
        layers = [[next(nodes) for _ in range(self.n_nodes)] for _ in range(n_layers)]
        edges = self._walk(start, layers, rng)
        rng.shuffle(edges)
        reached = [node for layer in layers for node in layer]
        seed_of_others = rng.getrandbits(64)

        def context(n: int) -> str:
            others_rng = random.Random(seed_of_others)
            drawn = _draw_nodes(others_rng, avoid=(start, *reached))
            others = [next(drawn) for _ in range(max(2, n // 2))]
            ends = others if self.operation == "parents" else [*others, *reached]
            lines = [_write(edge) for edge in _draw_edges(n, others, ends, others_rng)]
            positions = positions_at(self.depth, len(edges), n, split=split, index=index, rng=others_rng)
            return HEADER + "\n".join(insert_needles([_write(edge) for edge in edges], positions, lines)) + "\n\n"

        sample = Sample(
            index=index,
            context="",
            question=QUESTIONS[self.operation].format(node=start, depth=self.bfs_depth) + FORM,
            answer_prefix=f"{FINAL_ANSWER} [",
            answers=tuple(layers[-1]),
            max_new_tokens=self.max_new_tokens,
        )
        return fill_context(
            sample, context, unit="other edges", task=self.name, length=length, count_tokens=count_tokens
        )

    def _walk(self, start: str, layers: Sequence[Sequence[str]], rng: random.Random) -> list[Edge]:
        """The edges that matter; of a search, also one from each layer back to an earlier node, a dead end."""
        if self.operation == "parents":
            return [(parent, start) for parent in layers[0]]
        edges: list[Edge] = []
        before: Sequence[str] = [start]
        for layer in layers:
            edges += [(rng.choice(before), node) for node in layer]
            edges.append((rng.choice(layer), rng.choice(before)))
            before = layer
        return edges

    def metric_name(self) -> str:
        return "node_f1"

    def reference_answer(self, sample: Sample) -> str:
        return ", ".join(sample.answers) + "]"


def _draw_nodes(rng: random.Random, avoid: Sequence[str] = ()) -> Iterator[str]:
    """Draw different nodes without end."""
    drawn = set(avoid)
    while True:
        node = f"{rng.getrandbits(40):010x}"
        if node not in drawn:
            drawn.add(node)
            yield node


def _draw_edges(n: int, starts: Sequence[str], ends: Sequence[str], rng: random.Random) -> Iterator[Edge]:
    """Draw `n` edges between different nodes, which may repeat."""
    for _ in range(n):
        start = end = rng.choice(starts)
        while end == start:
            end = rng.choice(ends)
        yield start, end


def _write(edge: Edge) -> str:
    return f"{edge[0]} -> {edge[1]}"
