"""Keys and values of one JSON object, alone and in threads."""

from __future__ import annotations

import json

import pytest

from baklava.tasks import Sample
from baklava.tasks.json_kv import HEADER, JsonKeyValue


def draw(task: JsonKeyValue, *, index: int = 0, split: str = "evaluation", length: int = 900) -> Sample:
    return task.sample(split=split, seed=0, index=index, length=length, count_tokens=lambda text: len(text) // 4)


def read(sample: Sample) -> dict[str, str]:
    return json.loads(sample.context.removeprefix(HEADER))


def asked_key(sample: Sample) -> str:
    return sample.question.split('"')[1]


@pytest.mark.parametrize("n_hops", [1, 2, 5])
def test_the_answer_is_where_the_thread_ends(n_hops: int) -> None:
    for index in range(8):
        sample = draw(JsonKeyValue(name="thread", n_hops=n_hops), index=index)
        pairs = read(sample)
        key = asked_key(sample)
        for _ in range(n_hops):
            key = pairs[key]
        assert sample.answers == (key,) and key not in pairs
        assert json.loads('{"v": "' + JsonKeyValue(name="x").reference_answer(sample).rstrip(".") + "}")["v"] == key


def test_all_values_on_the_way_may_be_asked_for() -> None:
    task = JsonKeyValue(name="steps", n_hops=2, write_steps=True)
    sample = draw(task)
    pairs = read(sample)
    first = pairs[asked_key(sample)]
    assert sample.answers == (first, pairs[first]) and pairs[first] not in pairs
    assert "each value" in sample.question
    assert (sample.answer_prefix + task.reference_answer(sample)).count("The value is") == 2


def test_questions_about_one_object_are_about_other_keys() -> None:
    samples = [draw(JsonKeyValue(name="many", n_questions=3), index=index) for index in range(6)]
    assert [sample.context == samples[0].context for sample in samples] == [True] * 3 + [False] * 3
    assert len({asked_key(sample) for sample in samples}) == 6
    assert all(read(sample)[asked_key(sample)] == sample.answers[0] for sample in samples)


@pytest.mark.parametrize(("depth", "at"), [(0.0, 0.0), (0.5, 0.5), (1.0, 1.0)])
def test_the_depth_is_that_of_the_asked_pair(depth: float, at: float) -> None:
    sample = draw(JsonKeyValue(name="deep", depth=depth))
    keys = list(read(sample))
    assert keys.index(asked_key(sample)) / (len(keys) - 1) == pytest.approx(at, abs=0.05)


def test_calibration_spreads_the_asked_pairs() -> None:
    samples = [draw(JsonKeyValue(name="spread"), index=index, split="calibration") for index in range(8)]
    depths = sorted(list(read(sample)).index(asked_key(sample)) / (len(read(sample)) - 1) for sample in samples)
    assert depths[0] < 0.2 and depths[-1] > 0.75
