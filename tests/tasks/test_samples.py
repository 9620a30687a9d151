"""What holds for the samples of every task that makes its own: each such file of `conf/task` runs through these."""

from __future__ import annotations

import re
from contextlib import nullcontext, suppress
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from baklava.errors import UserError
from baklava.experiment.components import TaskConfig
from baklava.tasks import Sample, Task
from baklava.tasks.base import SPLITS, CountTokens

CONF = Path(__file__).parents[2] / "conf" / "task"
READ = (
    "continuation",
    "infinitebench",
    "jsonl",
    "longbench",
    "longbench_v2",
    "math_words",
    "mrcr",
    "nolima",
    "ruler_qa",
)  # families whose samples are those of a file
CONFIGURED = [
    path
    for path in sorted(CONF.rglob("[!_]*.yaml"))
    if yaml.safe_load(path.read_text())["family"] not in (*READ, "needle_grid")  # the grid has lengths of its own
]
LENGTHS = (512, 777, 1024, 2048, 4096)


@pytest.fixture(params=CONFIGURED, ids=lambda path: path.relative_to(CONF).with_suffix("").as_posix())
def task(request: pytest.FixtureRequest, essay_file: Path) -> Task:
    values = yaml.safe_load(request.param.read_text())
    given = {"essay": str(essay_file)} if "essay" in values and values["essay"] is None else {}
    return TaskConfig.model_validate({**values, **given}).build()


def words(text: str) -> int:
    return len(text.split())


def draw(task: Task, *, split: str = "evaluation", seed: int = 0, index: int = 0, length: int = 1024) -> Sample:
    return task.sample(split=split, seed=seed, index=index, length=length, count_tokens=words)


def test_sample_depends_on_split_seed_and_index_alone(task: Task) -> None:
    cases = [(split, seed, index) for split in SPLITS for seed in (0, 1) for index in (0, 1, 17)]
    forwards = {case: draw(task, split=case[0], seed=case[1], index=case[2]) for case in cases}
    backwards = {case: draw(task, split=case[0], seed=case[1], index=case[2]) for case in reversed(cases)}
    assert forwards == backwards
    assert len({sample.prompt for sample in forwards.values()}) == len(cases)


def test_longer_sample_asks_for_the_same(task: Task) -> None:
    short, long = draw(task, length=1024), draw(task, length=2048)
    assert (short.question, short.answer_prefix, short.answers) == (long.question, long.answer_prefix, long.answers)
    assert len(long.context) > len(short.context)


def test_unknown_split_is_refused(task: Task) -> None:
    with pytest.raises(ValueError, match="unknown split 'test'; expected one of train, calibration, evaluation"):
        draw(task, split="test")


@pytest.mark.parametrize("length", LENGTHS)
def test_length_is_the_asked_one_to_a_tenth(task: Task, length: int, count_tokens: CountTokens) -> None:
    # Only where the prompt without any noise comes near the length may there be none.
    # The 300 common words of cwe's long lists take 5,000 tokens of the reference models.
    possible = length >= 2048 and not (task.family == "cwe" and length >= 4096)
    none = nullcontext() if possible else suppress(UserError)
    for index in range(3):
        sample = None
        with none:
            sample = task.sample(split="evaluation", seed=0, index=index, length=length, count_tokens=count_tokens)
        if sample is None:
            continue
        assert sample.index == index
        assert 0.9 * length <= count_tokens(sample.prompt) + sample.max_new_tokens <= length


def test_too_short_a_length_names_the_task_and_the_shortest_possible(task: Task, count_tokens: CountTokens) -> None:
    def sample(length: int, index: int = 0) -> Sample:
        return task.sample(split="evaluation", seed=0, index=index, length=length, count_tokens=count_tokens)

    for length in (-1, 0, 1, task.max_new_tokens):
        with pytest.raises(UserError, match=rf"^task {task.name}: length {length} is too short") as error:
            sample(length)
        assert "\n" not in str(error.value)
    needed = int(re.search(r"at least (\d+)$", str(error.value))[1])
    with pytest.raises(UserError, match=f"at least {needed}$"):
        sample(needed - 1)
    shortest = [sample(needed, index) for index in range(getattr(task, "n_questions", 1))]  # about one context
    assert max(count_tokens(one.prompt) + one.max_new_tokens for one in shortest) == needed


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**40), index=st.integers(0, 2**40))
def test_answers_are_in_the_context_and_only_there(task: Task, seed: int, index: int) -> None:
    sample = draw(task, seed=seed, index=index)
    assert len(sample.answers) >= 1
    for answer in sample.answers:
        assert answer in sample.context
        # Any English word may be common: `most` and `list` are in the question, too.
        assert answer not in sample.question + sample.answer_prefix or task.family == "cwe"


def test_perfect_answer_scores_one_and_none_scores_zero(task: Task) -> None:
    sample = draw(task)
    assert task.score(task.reference_answer(sample), sample.answers) == 1.0
    assert task.score("", sample.answers) == 0.0
    # A common English word may be a part of another.
    assert task.score(task.reference_answer(draw(task, index=1)), sample.answers) <= (task.family == "cwe") * 0.2


def test_perfect_answer_fits_into_the_generated_tokens(task: Task, count_reference_tokens: CountTokens) -> None:
    for index in range(20):
        sample = draw(task, index=index)
        answer_tokens = count_reference_tokens(task.reference_answer(sample)) - count_reference_tokens("")
        assert answer_tokens <= sample.max_new_tokens
