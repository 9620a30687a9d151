"""Tasks made of text alone: twenty samples of each are what they were, and solved by reading their text."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from baklava.experiment.components import TaskConfig
from baklava.tasks import Sample, Task
from baklava.tasks.metrics import METRICS

EXPECTED = Path(__file__).parent / "expected"
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "json_kv": [{}, {"n_hops": 2}, {"n_hops": 3, "depth": 0.5}, {"n_questions": 5}],
    "needle_threading": [
        {"n_threads": 1, "n_hops": 3, "direction": "forward"},
        {"n_threads": 3, "n_hops": 2, "direction": "backward"},
        {"n_threads": 4, "n_hops": 1, "depth": 0.25},
        {"n_threads": 3, "character": "*"},
    ],
    "path_traversal": [{"n_steps": n, "depth": depth} for n, depth in ((1, None), (5, 0.5), (9, None), (12, 1.0))],
    "graphwalks": [
        {"operation": "bfs", "bfs_depth": 1, "n_nodes": 4},
        {"operation": "bfs", "bfs_depth": 3, "n_nodes": 2, "depth": 0.0},
        {"operation": "parents", "n_nodes": 5},
        {"operation": "bfs", "depth": 1.0},
    ],
}


def words(text: str) -> int:
    return len(text.split())


def made(family: str) -> Iterator[tuple[dict[str, Any], Task, Sample]]:
    """Twenty samples: five of each variant, 400 words long with their answers."""
    for variant in VARIANTS[family]:
        values = {"name": family, "family": family, "max_new_tokens": 100, **variant}
        task = TaskConfig.model_validate(values).build()
        for index in range(5):
            yield variant, task, task.sample(split="evaluation", seed=3, index=index, length=400, count_tokens=words)


def needles_of(sample: Sample, variant: dict[str, Any]) -> list[str]:
    pairs = dict(re.findall(r'"([^"]{36})": "([^"]{36})"', sample.context))
    character = variant.get("character")
    ends = [key for key in pairs if character in key] if character else re.findall(r'"([^"]{36})"', sample.question)
    for _ in range(variant.get("n_hops", 1)):
        ends = [pairs[key] for key in ends]
    return ends


def route_of(sample: Sample, variant: dict[str, Any]) -> list[str]:
    lines = {line.split(",")[0].removeprefix("From "): line for line in sample.context.split("\n") if "take a" in line}
    city, last = re.findall(r"route from (.+?) to (.+?), each", sample.question)[0]
    route = []
    while city != last:
        route.append(lines[city])
        city = re.findall(r" to (.+)\.$", lines[city])[0]
    return route


def nodes_of(sample: Sample, variant: dict[str, Any]) -> list[str]:
    edges = [line.split(" -> ") for line in sample.context.split("\n") if " -> " in line]
    node = re.findall(r"node ([0-9a-f]{10})", sample.question)[0]
    if variant.get("operation") == "parents":
        return [start for start, end in edges if end == node]
    seen, frontier = {node}, {node}
    for _ in range(variant.get("bfs_depth", 2)):
        frontier = {end for start, end in edges if start in frontier} - seen
        seen |= frontier
    return sorted(frontier)


SOLVERS: dict[str, Callable[[Sample, dict[str, Any]], list[str]]] = {
    "json_kv": needles_of,
    "needle_threading": needles_of,
    "path_traversal": route_of,
    "graphwalks": nodes_of,
}


@pytest.mark.parametrize("family", VARIANTS)
def test_twenty_samples_are_the_expected_ones_and_their_answers_are_in_their_text(family: str) -> None:
    expected = json.loads((EXPECTED / f"{family}.json").read_text(encoding="utf-8"))
    samples = list(made(family))
    assert len(samples) == len(expected) == 20
    for (variant, task, sample), row in zip(samples, expected, strict=True):
        digest = hashlib.sha256(sample.context.encode()).hexdigest()[:12]
        assert row == {"context": digest, "question": sample.question, "answers": list(sample.answers)}
        solved = SOLVERS[family](sample, variant)
        assert solved == list(sample.answers) if family == "path_traversal" else set(solved) == set(sample.answers)
        assert len(solved) == len(sample.answers)
        assert task.score(task.reference_answer(sample), sample.answers) == 1.0
        assert 360 <= words(sample.prompt) + 100 <= 400
        if variant.get("depth") is not None:  # of what matters among all lines
            lines = sample.context.strip().split("\n")
            at = [i for i, line in enumerate(lines) if any(answer in line for answer in sample.answers)]
            assert min(abs(i / len(lines) - variant["depth"]) for i in at) < 0.1


ROUTE = ["From A, take a bus to B.", "From B, take a ferry to C.", "From C, take a train to D."]
TEXT = "\n".join(ROUTE)


@pytest.mark.parametrize(
    ("prediction", "score"),
    [
        (TEXT, 1.0),
        (f"<Route>\n{TEXT}\n</Route>", 1.0),
        (f"Let me see. From A first.\n<Route>\n{TEXT}\n</Route> Done.", 1.0),
        (f"{TEXT}\n</Route>\nFrom D, take a bus to E.", 1.0),
        (f"{TEXT}\nFrom D, take a bus to E.", 1.0),
        (f"  {ROUTE[0]}  \n{ROUTE[1]}", 2 / 3),
        (f"{ROUTE[0]}\nFrom B, take a bus to C.\n{ROUTE[2]}", 1 / 3),
        (f"{ROUTE[1]}\n{ROUTE[2]}", 0.0),
        (ROUTE[0].lower(), 0.0),
        ("", 0.0),
    ],
)
def test_a_route_counts_up_to_its_first_mistake(prediction: str, score: float) -> None:
    assert METRICS["route"](prediction, ROUTE, ()) == pytest.approx(score)


@pytest.mark.parametrize(
    ("prediction", "score"),
    [
        ("a, b]", 1.0),
        ("b,a]\nFinal words", 1.0),
        ("So it is:\nFinal Answer: [b, a]", 1.0),
        ("Final Answer:[a, b]\n", 1.0),
        ("Final Answer: [a]\nFinal Answer: [a, b]", 1.0),
        ("Final Answer: [a, b]\nThat is all.", 0.0),
        ("a, b, c]", 0.8),
        ("a]", 2 / 3),
        ("c]", 0.0),
        ("a, b", 0.0),
        ("Final Answer: []", 0.0),
        ("", 0.0),
    ],
)
def test_nodes_are_a_set(prediction: str, score: float) -> None:
    assert METRICS["node_f1"](prediction, ["a", "b"], ()) == pytest.approx(score)
