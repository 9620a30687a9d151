"""Reads SQuAD and HotpotQA as RULER does: questions, and one pool of all their documents."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from baklava.errors import UserError
from baklava.system.files import expand_home
from baklava.tasks.text.rows import Row, is_local, load_dataset_rows, read_bytes


@dataclass(frozen=True)
class RawQuestion:
    """A question with the text of its documents."""

    id: str
    text: str
    answers: tuple[str, ...]
    gold: tuple[str, ...]
    article: str


@dataclass(frozen=True)
class Question:
    """A question; documents are indices into the pool. `related` ones are of the same article, without the answer."""

    id: str
    text: str
    answers: tuple[str, ...]
    gold: tuple[int, ...]
    related: tuple[int, ...]


@dataclass(frozen=True)
class QaSet:
    """Questions, and the pool of different documents, sorted."""

    questions: tuple[Question, ...]
    documents: tuple[str, ...]

    def unrelated_to(self, question: Question) -> list[int]:
        near = {*question.gold, *question.related}
        return [index for index in range(len(self.documents)) if index not in near]


def read_qa_set(data: str, dataset: str, *, name: str | None, split: str, revision: str | None) -> QaSet:
    """Read RULER's JSON file or a `datasets` path. Raises `UserError` that names the location and the field."""
    local = expand_home(data)
    if local.is_file():
        raw_questions = _READERS[dataset](str(local), _parse_json(local))
    else:
        rows = load_dataset_rows(str(local) if is_local(data) else data, name=name, split=split, revision=revision)
        raw_questions = (raw for row in rows for raw in _FROM_ROW[dataset](row))
    return _pool_documents(list(raw_questions), data)


def _parse_json(path: Path) -> Any:
    try:
        return json.loads(read_bytes(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({' '.join(str(error).split())}); download it again") from None


def _pool_documents(raw_questions: list[RawQuestion], data: str) -> QaSet:
    if not raw_questions:
        raise UserError(f"{data}: no question that has an answer; give another file")
    documents = tuple(sorted({document for raw in raw_questions for document in raw.gold}))
    index = {document: i for i, document in enumerate(documents)}
    articles: dict[str, dict[int, None]] = {}
    for raw in raw_questions:
        if raw.article:
            articles.setdefault(raw.article, {}).update(dict.fromkeys(index[document] for document in raw.gold))
    questions = []
    for raw in raw_questions:
        gold = tuple(index[document] for document in raw.gold)
        related = tuple(document for document in articles.get(raw.article, ()) if document not in gold)
        questions.append(Question(raw.id, raw.text, raw.answers, gold, related))
    return QaSet(tuple(questions), documents)


def _objects(values: Any, location: str) -> Iterator[Row]:
    if not isinstance(values, list):
        raise UserError(f"{location}: expected a list of objects, got {type(values).__name__}; see RULER's data")
    for i, value in enumerate(values):
        if not isinstance(value, dict):
            raise UserError(f"{location}[{i}]: expected an object, got {type(value).__name__}; see RULER's data")
        yield Row(f"{location}[{i}]", value)


def _squad_file(file: str, values: Any) -> Iterator[RawQuestion]:
    articles = values.get("data") if isinstance(values, dict) else None
    for article in _objects(articles, f"{file}, data"):
        for paragraph in _objects(article.values.get("paragraphs"), f"{article.location}.paragraphs"):
            for asked in _objects(paragraph.values.get("qas"), f"{paragraph.location}.qas"):
                if asked.values.get("is_impossible"):
                    continue
                answers = _objects(asked.values.get("answers"), f"{asked.location}.answers")
                yield RawQuestion(
                    id=asked.name("id") if asked.has("id") else "",
                    text=asked.text("question"),
                    answers=_require_answers((answer.text("text") for answer in answers), asked.location),
                    gold=(paragraph.text("context"),),
                    article=article.location,
                )


def _squad_row(row: Row) -> Iterator[RawQuestion]:
    answers = row.values.get("answers") or {}
    texts = answers.get("text") if isinstance(answers, dict) else None
    if texts:  # SQuAD 2.0 has questions without an answer
        yield RawQuestion(
            id=row.name("id") if row.has("id") else "",
            text=row.text("question"),
            answers=tuple(texts),
            gold=(row.text("context"),),
            article=row.text("title") if row.has("title") else "",
        )


def _hotpotqa_file(file: str, values: Any) -> Iterator[RawQuestion]:
    for row in _objects(values, file):
        pairs = row.values.get("context")
        try:
            gold = tuple(f"{title}\n{''.join(lines)}" for title, lines in pairs)  # type: ignore[union-attr]
        except (TypeError, ValueError):
            raise UserError(
                f"{row.location}: context: expected a list of [title, sentences]; see RULER's data"
            ) from None
        yield _hotpotqa_question(row, gold)


def _hotpotqa_row(row: Row) -> Iterator[RawQuestion]:
    context = row.values.get("context")
    try:
        pairs = zip(context["title"], context["sentences"], strict=True)  # type: ignore[index]
        gold = tuple(f"{title}\n{''.join(lines)}" for title, lines in pairs)
    except (TypeError, KeyError, ValueError):
        raise UserError(f"{row.location}: context: expected lists named title and sentences") from None
    yield _hotpotqa_question(row, gold)


def _hotpotqa_question(row: Row, gold: tuple[str, ...]) -> RawQuestion:
    name = next((field for field in ("_id", "id") if row.has(field)), None)
    return RawQuestion(
        id=row.name(name) if name else "",
        text=row.text("question"),
        answers=(row.text("answer"),),
        gold=tuple(dict.fromkeys(gold)),
        article="",
    )


def _require_answers(texts: Iterator[str], location: str) -> tuple[str, ...]:
    answers = tuple(texts)
    if not answers:
        raise UserError(f"{location}: answers: a question that is not is_impossible needs one")
    return answers


_READERS = {"squad": _squad_file, "hotpotqa": _hotpotqa_file}
_FROM_ROW = {"squad": _squad_row, "hotpotqa": _hotpotqa_row}
