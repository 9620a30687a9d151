"""Questions among documents, as in RULER, from its two files in their layouts."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from benchmark_data import hotpotqa, squad

from baklava.errors import UserError
from baklava.tasks import Sample
from baklava.tasks.ruler.qa import RulerQa

DATA: dict[str, Any] = {"squad": squad, "hotpotqa": hotpotqa}


def words(text: str) -> int:
    return len(text.split())


def task(dataset: str, folder: Path, values: Any = None) -> RulerQa:
    path = folder / f"{dataset}.json"
    path.write_text(json.dumps(DATA[dataset]() if values is None else values))
    return RulerQa(name="qa", dataset=dataset, data=str(path))  # type: ignore[arg-type]


def draw(one: RulerQa, *, index: int = 0, seed: int = 0, length: int = 400, split: str = "evaluation") -> Sample:
    return one.sample(split=split, seed=seed, index=index, length=length, count_tokens=words)


def documents(sample: Sample) -> list[str]:
    parts = re.split(r"Document \d+:\n", sample.context)
    return [part.strip() for part in parts[1:]]


def test_reads_as_in_ruler(tmp_path: Path) -> None:
    sample = draw(task("squad", tmp_path))
    instruction = "Answer the question based on the given documents. "
    instruction += "Only give me the answer and do not output any other words.\n\n"
    assert sample.context.startswith(f"{instruction}The following are given documents.\n\nDocument 1:\nBay ")
    assert sample.context.endswith("slept.\n\n")
    assert sample.question == f"{instruction}Question: How many boats has bay 1000?"
    assert sample.answer_prefix == " Answer:"
    assert sample.answers == ("3000", "3000 boats")
    assert (sample.max_new_tokens, sample.id) == (32, "q1000")
    numbers = [int(number) for number in re.findall(r"Document (\d+):\n", sample.context)]
    assert numbers == list(range(1, len(numbers) + 1))


@pytest.mark.parametrize(("dataset", "n"), [("squad", 20), ("hotpotqa", 6)])
def test_questions_come_in_order_and_their_documents_are_there(dataset: str, n: int, tmp_path: Path) -> None:
    one = task(dataset, tmp_path)
    assert one.n_available() == n
    for index in range(n):
        sample = draw(one, index=index)
        assert any(sample.answers[0] in document for document in documents(sample))
        assert 360 <= words(sample.prompt) + sample.max_new_tokens <= 400
        assert one.score(one.reference_answer(sample), sample.answers) == 1.0
        assert one.score("", sample.answers) == 0.0
    assert draw(one, index=0, split="calibration").answers == draw(one, index=n - 1).answers
    with pytest.raises(UserError, match=f"sample {n} asked for, but .* has {n}"):
        draw(one, index=n)


def test_hotpotqa_keeps_title_and_sentences_together(tmp_path: Path) -> None:
    found = documents(draw(task("hotpotqa", tmp_path)))
    assert "Captain 0\nCaptain 0 sails from bay 0." in found
    assert "Bay 0\nBay 0 is where Gull0x lives." in found
    assert "Weather 0\nIt rained 0 times. Then it stopped." in found


def test_documents_of_the_same_article_come_before_others(tmp_path: Path) -> None:
    """In RULER they are the first distractors."""
    found = documents(draw(task("squad", tmp_path), length=220))
    bays = sorted(int(document.split()[1]) // 10 for document in found)
    assert bays == [100] * len(bays)
    assert len(bays) > 2


def test_depends_on_seed_and_index_alone(tmp_path: Path) -> None:
    one, again = task("squad", tmp_path), task("squad", tmp_path)
    assert draw(one, index=3) == draw(again, index=3)
    first, second = draw(one, index=3), draw(one, index=3, seed=1)
    assert first.question == second.question
    assert first.context != second.context


def test_documents_repeat_where_there_are_too_few(tmp_path: Path) -> None:
    sample = draw(task("hotpotqa", tmp_path), length=2000)
    assert len(documents(sample)) > 18
    assert len(set(documents(sample))) == 18


def test_too_short_a_length_names_the_needed_one(tmp_path: Path) -> None:
    one = task("squad", tmp_path)
    with pytest.raises(UserError, match=r"task qa: length 50 is too short: .* at least (\d+)$") as error:
        draw(one, length=50)
    needed = int(str(error.value).rsplit(maxsplit=1)[-1])
    assert words(draw(one, length=needed).prompt) + 32 == needed


def without(values: Any, *path: Any) -> Any:
    """`values` without what lies at `path`."""
    inner = values
    for step in path[:-1]:
        inner = inner[step]
    del inner[path[-1]]
    return values


@pytest.mark.parametrize(
    ("dataset", "values", "said"),
    [
        ("squad", {}, r"squad\.json, data: expected a list of objects"),
        ("squad", {"data": [3]}, r"squad\.json, data\[0\]: expected an object, got int"),
        (
            "squad",
            without(squad(), "data", 1, "paragraphs", 2, "context"),
            r"squad\.json, data\[1\]\.paragraphs\[2\]: context: missing",
        ),
        (
            "squad",
            without(squad(), "data", 0, "paragraphs", 1, "qas", 0, "question"),
            r"squad\.json, data\[0\]\.paragraphs\[1\]\.qas\[0\]: question: missing",
        ),
        ("squad", {"data": []}, "no question that has an answer"),
        ("hotpotqa", without(hotpotqa(), 2, "answer"), r"hotpotqa\.json\[2\]: answer: missing"),
        (
            "hotpotqa",
            [{"question": "a", "answer": "b", "context": ["c"]}],
            r"hotpotqa\.json\[0\]: context: expected a list of \[title, sentences\]",
        ),
    ],
)
def test_malformed_data_names_place_and_field(dataset: str, values: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said) as error:
        task(dataset, tmp_path, values).n_available()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("data", [None, "/no/squad.json"])
def test_missing_data_says_what_to_provide(data: str | None) -> None:
    with pytest.raises(UserError, match=r"task qa: data: .*; set tasks\.qa\.data to RULER's squad\.json"):
        RulerQa(name="qa", dataset="squad", data=data).check()


@pytest.mark.parametrize("dataset", ["squad", "hotpotqa"])
def test_a_data_set_gives_the_same_as_the_file(dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the columns that `squad_v2` and `hotpot_qa` have on the hub."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    if dataset == "squad":
        rows = [
            {
                "id": asked["id"],
                "title": article["title"],
                "context": paragraph["context"],
                "question": asked["question"],
                "answers": {"text": [one["text"] for one in asked["answers"]], "answer_start": []},
            }
            for article in squad()["data"]
            for paragraph in article["paragraphs"]
            for asked in paragraph["qas"]
        ]
    else:
        rows = [
            {
                "id": one["_id"],
                "question": one["question"],
                "answer": one["answer"],
                "context": {"title": [t for t, _ in one["context"]], "sentences": [s for _, s in one["context"]]},
            }
            for one in hotpotqa()
        ]
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    loaded = RulerQa(name="qa", dataset=dataset, data=str(tmp_path / "set"))  # type: ignore[arg-type]
    expected = task(dataset, tmp_path)
    assert loaded.questions.documents == expected.questions.documents
    assert [(q.id, q.answers) for q in loaded.questions.questions] == [
        (q.id, q.answers) for q in expected.questions.questions
    ]
    assert draw(loaded, index=2) == draw(expected, index=2)
