"""RULER's thirteen tasks have its parameters and words, whatever stands in the haystack."""

from __future__ import annotations

import re
from pathlib import Path
from uuid import UUID

import pytest
import yaml

from baklava.errors import UserError
from baklava.experiment.components import TaskConfig
from baklava.tasks import NeedleInHaystack, Sample, Task
from baklava.tasks.base import CountTokens

CONF = Path(__file__).parents[2] / "conf" / "task"

# haystack, keys, values, queries, kind of keys, kind of values: table 2 of the paper and its synthetic.yaml
NIAH = {
    "niah_single_1": ("noise", 1, 1, 1, "words", "numbers"),
    "niah_single_2": ("essay", 1, 1, 1, "words", "numbers"),
    "niah_single_3": ("essay", 1, 1, 1, "words", "uuids"),
    "niah_multikey_1": ("essay", 4, 1, 1, "words", "numbers"),
    "niah_multikey_2": ("needle", 1, 1, 1, "words", "numbers"),
    "niah_multikey_3": ("needle", 1, 1, 1, "uuids", "uuids"),
    "niah_multivalue": ("essay", 1, 4, 1, "words", "numbers"),
    "niah_multiquery": ("essay", 4, 1, 4, "words", "numbers"),
}
# generated tokens and metric, of the paper's constants
OTHERS = {
    "vt": (30, "string_match_all"),
    "cwe": (120, "string_match_all"),
    "fwe": (50, "string_match_all"),
    "qa_1": (32, "string_match_part"),
    "qa_2": (32, "string_match_part"),
}
PATTERN = {"words": r"\S+-.+?", "numbers": r"\d{7}", "uuids": r"[0-9a-f-]{36}"}


def words(text: str) -> int:
    return len(text.split())


def configured(name: str, **changed: object) -> Task:
    values = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    return TaskConfig.model_validate({**values, **changed}).build()


def draw(task: Task, *, index: int = 0, length: int = 1024, count_tokens: CountTokens = words) -> Sample:
    return task.sample(split="evaluation", seed=0, index=index, length=length, count_tokens=count_tokens)


def niah(name: str, essay_file: Path) -> NeedleInHaystack:
    task = configured(f"ruler/{name}", **({"essay": str(essay_file)} if NIAH[name][0] == "essay" else {}))
    assert isinstance(task, NeedleInHaystack)
    return task


def test_there_are_thirteen() -> None:
    assert sorted(path.stem for path in (CONF / "ruler").glob("*.yaml")) == sorted([*NIAH, *OTHERS])


@pytest.mark.parametrize("name", NIAH)
def test_needles_have_the_published_parameters(name: str) -> None:
    task = configured(f"ruler/{name}")
    assert isinstance(task, NeedleInHaystack)
    counts = (task.n_keys, task.n_values, task.n_queries)
    assert (task.haystack, *counts, task.key_kind, task.value_kind) == NIAH[name]
    assert (task.n_digits, task.max_new_tokens, task.metric_name()) == (7, 128, "string_match_all")


@pytest.mark.parametrize("name", OTHERS)
def test_the_others_have_the_published_parameters(name: str) -> None:
    task = configured(f"ruler/{name}")
    assert (task.max_new_tokens, task.metric_name()) == OTHERS[name]


@pytest.mark.parametrize("name", [name for name, (haystack, *_) in NIAH.items() if haystack == "essay"])
def test_stand_ins_differ_in_the_text_and_the_name_alone(name: str) -> None:
    ours, theirs = (
        yaml.safe_load((CONF / folder / f"{name}.yaml").read_text()) for folder in ("ruler_standin", "ruler")
    )
    for only_of_a_data_set in ("essay_split", "essay_revision"):
        del theirs[only_of_a_data_set]
    assert ours == {**theirs, "name": f"ruler_standin_{name}", "essay": "standin"}


@pytest.mark.parametrize("name", NIAH)
def test_prompt_reads_as_in_ruler(name: str, essay_file: Path) -> None:
    haystack, n_keys, n_values, n_queries, key_kind, kind = NIAH[name]
    sample = draw(niah(name, essay_file), length=2048)
    one = kind[:-1]
    plural = n_values * n_queries > 1
    header = (
        f"Some special magic {kind} are hidden within the following text. Make sure to memorize it. "
        f"I will quiz you about the {kind} afterwards.\n"
        if plural
        else f"A special magic {one} is hidden within the following text. Make sure to memorize it. "
        f"I will quiz you about the {one} afterwards.\n"
    )
    assert sample.context.startswith(header)
    found = re.findall(
        rf"One of the special magic {kind} for ({PATTERN[key_kind]}) is: ({PATTERN[kind]})\.", sample.context
    )
    assert len({key for key, _ in found}) >= n_keys
    assert len(found) == n_keys * n_values or haystack == "needle"
    asked, what = ("What are all the special magic", kind) if plural else ("What is the special magic", one)
    assert sample.question.startswith(f"{asked} {what} for ")
    assert sample.question.endswith(" mentioned in the provided text?")
    names = sample.question.removeprefix(f"{asked} {what} for ").removesuffix(" mentioned in the provided text?")
    verb = "are" if plural else "is"
    assert sample.answer_prefix == f" The special magic {what} for {names} mentioned in the provided text {verb}"
    keys = {key for key, value in found if value in sample.answers}
    assert all(key in names for key in keys)
    assert len(keys) == n_queries
    assert len(sample.answers) == n_queries * n_values


def test_uuids_are_uuids(essay_file: Path) -> None:
    sample = draw(niah("niah_multikey_3", essay_file))
    [key] = re.findall(r"magic uuid for (\S+) mentioned", sample.question)
    assert UUID(key).version == UUID(sample.answers[0]).version == 4


def test_other_needles_have_other_keys(essay_file: Path) -> None:
    sample = draw(niah("niah_multikey_2", essay_file), length=4096)
    lines = sample.context.split("\n")[1:-1]
    assert len(lines) > 200
    assert all(re.fullmatch(r"One of the special magic numbers for .+-.+ is: \d{7}\.", line) for line in lines)
    key = sample.question.removeprefix("What is the special magic number for ").split(" mentioned")[0]
    assert [f" {key} is:" in line for line in lines].count(True) == 1


def test_the_essay_is_whole_around_the_needles(essay_file: Path) -> None:
    sample = draw(niah("niah_multivalue", essay_file), length=2048)
    body = sample.context.split("\n", 1)[1]
    without = " ".join(re.sub(r"One of the special magic numbers for .+? is: \d{7}\.", "", body).split())
    assert " ".join(essay_file.read_text().split()).startswith(without)
    assert len(without.split()) > 1500


def test_an_essay_repeats_where_it_is_too_short(tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("Two boats left. One came back.")
    sample = draw(configured("ruler/niah_single_2", essay=str(tmp_path / "short.txt")))
    assert sample.context.count("Two boats left.") > 100


@pytest.mark.parametrize("name", [name for name, (haystack, *_) in NIAH.items() if haystack == "essay"])
def test_without_an_essay_the_error_says_what_to_provide(name: str) -> None:
    task = configured(f"ruler/{name}")
    with pytest.raises(UserError, match=rf"task ruler_{name}: essay: no text given; set tasks\.ruler_{name}\.essay to"):
        task.check()
    with pytest.raises(UserError, match="essay: no text given"):
        draw(task)


def test_more_needles_than_depths_are_refused() -> None:
    with pytest.raises(UserError, match=r"an essay takes at most 40 needles, n_keys x n_values is 44"):
        NeedleInHaystack(name="t", haystack="essay", n_keys=11, n_values=4)
