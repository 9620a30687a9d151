"""SQuAD and HotpotQA as RULER reads them: questions, and one pool of all their documents."""

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
class Draft:
    """A question with its documents in full."""

    id: str
    text: str
    answers: tuple[str, ...]
    gold: tuple[str, ...]
    article: str


@dataclass(frozen=True)
class Question:
    """A question; documents are numbers in the pool. `related` ones are of the same article, without the answer."""

    id: str
    text: str
    answers: tuple[str, ...]
    gold: tuple[int, ...]
    related: tuple[int, ...]


@dataclass(frozen=True)
class QaSet:
    """Questions and the pool of documents, sorted, each once."""

    questions: tuple[Question, ...]
    documents: tuple[str, ...]

    def unrelated_to(self, question: Question) -> list[int]:
        taken = {*question.gold, *question.related}
        return [number for number in range(len(self.documents)) if number not in taken]


def read_qa_set(data: str, dataset: str, *, name: str | None, split: str, revision: str | None) -> QaSet:
    """Read RULER's JSON file or a `datasets` path. Raises `UserError` that names the place and the field."""
    local = expand_home(data)
    if local.is_file():
        drafts = _READERS[dataset](str(local), _parsed(local))
    else:
        rows = load_dataset_rows(str(local) if is_local(data) else data, name=name, split=split, revision=revision)
        drafts = (draft for row in rows for draft in _FROM_ROW[dataset](row))
    return _pooled(list(drafts), data)


def _parsed(path: Path) -> Any:
    try:
        return json.loads(read_bytes(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({' '.join(str(error).split())}); download it again") from None


def _pooled(drafts: list[Draft], data: str) -> QaSet:
    if not drafts:
        raise UserError(f"{data}: no question that has an answer; give another file")
    documents = tuple(sorted({document for draft in drafts for document in draft.gold}))
    number = {document: i for i, document in enumerate(documents)}
    articles: dict[str, dict[int, None]] = {}
    for draft in drafts:
        if draft.article:
            articles.setdefault(draft.article, {}).update(dict.fromkeys(number[one] for one in draft.gold))
    questions = []
    for draft in drafts:
        gold = tuple(number[one] for one in draft.gold)
        related = tuple(one for one in articles.get(draft.article, ()) if one not in gold)
        questions.append(Question(draft.id, draft.text, draft.answers, gold, related))
    return QaSet(tuple(questions), documents)


def _objects(values: Any, place: str) -> Iterator[Row]:
    if not isinstance(values, list):
        raise UserError(f"{place}: expected a list of objects, got {type(values).__name__}; see RULER's data")
    for i, value in enumerate(values):
        if not isinstance(value, dict):
            raise UserError(f"{place}[{i}]: expected an object, got {type(value).__name__}; see RULER's data")
        yield Row(f"{place}[{i}]", value)


def _squad_file(file: str, values: Any) -> Iterator[Draft]:
    articles = values.get("data") if isinstance(values, dict) else None
    for article in _objects(articles, f"{file}, data"):
        for paragraph in _objects(article.values.get("paragraphs"), f"{article.place}.paragraphs"):
            for asked in _objects(paragraph.values.get("qas"), f"{paragraph.place}.qas"):
                if asked.values.get("is_impossible"):
                    continue
                found = _objects(asked.values.get("answers"), f"{asked.place}.answers")
                yield Draft(
                    id=asked.name("id") if asked.has("id") else "",
                    text=asked.text("question"),
                    answers=_some((one.text("text") for one in found), asked.place),
                    gold=(paragraph.text("context"),),
                    article=article.place,
                )


def _squad_row(row: Row) -> Iterator[Draft]:
    found = row.values.get("answers") or {}
    texts = found.get("text") if isinstance(found, dict) else None
    if texts:  # SQuAD 2.0 has questions without an answer
        yield Draft(
            id=row.name("id") if row.has("id") else "",
            text=row.text("question"),
            answers=tuple(texts),
            gold=(row.text("context"),),
            article=row.text("title") if row.has("title") else "",
        )


def _hotpotqa_file(file: str, values: Any) -> Iterator[Draft]:
    for row in _objects(values, file):
        pairs = row.values.get("context")
        try:
            gold = tuple(f"{title}\n{''.join(lines)}" for title, lines in pairs)  # type: ignore[union-attr]
        except (TypeError, ValueError):
            raise UserError(f"{row.place}: context: expected a list of [title, sentences]; see RULER's data") from None
        yield _hotpotqa_draft(row, gold)


def _hotpotqa_row(row: Row) -> Iterator[Draft]:
    context = row.values.get("context")
    try:
        pairs = zip(context["title"], context["sentences"], strict=True)  # type: ignore[index]
        gold = tuple(f"{title}\n{''.join(lines)}" for title, lines in pairs)
    except (TypeError, KeyError, ValueError):
        raise UserError(f"{row.place}: context: expected lists named title and sentences") from None
    yield _hotpotqa_draft(row, gold)


def _hotpotqa_draft(row: Row, gold: tuple[str, ...]) -> Draft:
    name = next((field for field in ("_id", "id") if row.has(field)), None)
    return Draft(
        id=row.name(name) if name else "",
        text=row.text("question"),
        answers=(row.text("answer"),),
        gold=tuple(dict.fromkeys(gold)),
        article="",
    )


def _some(texts: Iterator[str], place: str) -> tuple[str, ...]:
    found = tuple(texts)
    if not found:
        raise UserError(f"{place}: answers: a question that is not is_impossible needs one")
    return found


_READERS = {"squad": _squad_file, "hotpotqa": _hotpotqa_file}
_FROM_ROW = {"squad": _squad_row, "hotpotqa": _hotpotqa_row}
