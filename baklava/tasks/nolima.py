"""NoLiMa (arXiv 2502.05167): needles whose questions share no words with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field

from baklava.errors import DataError, LengthError, UserError
from baklava.system.files import expand_home
from baklava.tasks.base import Count, CountTokens, Sample
from baklava.tasks.from_file import FileTask
from baklava.tasks.text.fit_length import fill_context
from baklava.tasks.text.rows import read_rows, read_text

# As published, for answers without reasoning before them; a needle set may have a template of its own.
TEMPLATE = (
    "You will answer a question based on the following book snippet:\n\n{haystack}\n\nUse the information provided in "
    "the book snippet to answer the question. Your answer should be short and based on either explicitly stated facts "
    "or strong, logical inferences.\n\nQuestion: {question}\n\n Return only the final answer with no additional "
    "explanation or reasoning."
)
CHARACTER = "{CHAR}"


@dataclass(frozen=True)
class Needle:
    """A needle with its question: `characters` are names of whom one is put in and asked for, if there are any."""

    id: str
    text: str
    question: str
    answers: tuple[str, ...]
    characters: tuple[str, ...]
    template: str
    system: str
    distractor: str = ""


@dataclass(frozen=True, kw_only=True)
class NoLiMa(FileTask):
    """The needles of a set in the shuffled books, at `n_depths` depths each.

    `data` is the folder into which the published script loads `needlesets/` and `haystack/`. Samples come depth by
    depth within a needle, needle by needle within a book; a needle goes to the first end of a line at or after its
    depth. Names are drawn from our own random streams, and books are cut by characters, so prompts differ from those
    published in both. Score: whether a right answer occurs in the prediction (`contains`). A needle set's system
    message comes first in the context. Distractors are not placed, and sets that have some refused.
    """

    family: ClassVar[str] = "nolima"

    needle_set: str = "needle_set.json"
    haystack: str = "rand_shuffle"
    n_depths: Annotated[int, Field(ge=2)] = 26
    max_new_tokens: Count = 192

    def _wanted(self) -> str:
        return "the folder with NoLiMa's needlesets/ and haystack/ (amodaresi/NoLiMa on Hugging Face)"

    def check(self) -> None:
        folder = expand_home(self._required_data())
        for path in (folder / "needlesets" / self.needle_set, folder / "haystack" / self.haystack):
            if not path.exists():
                raise UserError(f"task {self.name}: data: no {path}; set tasks.{self.name}.data to {self._wanted()}")

    @cached_property
    def books(self) -> list[Path]:
        folder = expand_home(self._required_data()) / "haystack" / self.haystack
        books = sorted(folder.glob("*.txt"))
        if not books:
            raise DataError(f"task {self.name}: {folder}: no books (*.txt); load them as NoLiMa's script does")
        return books

    @cached_property
    def needles(self) -> list[Needle]:
        """All needles with their questions. Raises `DataError` for a file of another kind."""
        path = expand_home(self._required_data()) / "needlesets" / self.needle_set
        try:
            return [needle for row in read_rows(path) or () for needle in _needles_of(row.values)]
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path}: not a needle set of NoLiMa ({type(error).__name__}: {error})") from None

    def n_available(self) -> int:
        return len(self.books) * len(self.needles) * self.n_depths

    def sample(self, *, split: str, seed: int, index: int, length: int, count_tokens: CountTokens) -> Sample:
        number, nth_depth = divmod(self.number(split=split, index=index), self.n_depths)
        nth_book, nth_needle = divmod(number, len(self.needles))
        needle, book = self.needles[nth_needle], read_text(self.books[nth_book])
        if needle.distractor:
            raise UserError(
                f"task {self.name}: needle_set: {self.needle_set} has distractors; choose a set without them"
            )
        rng = self.random_stream(split=split, seed=seed, index=index)
        name = rng.choice(needle.characters) if needle.characters else ""
        before, after = needle.template.split("{haystack}")
        system = f"{needle.system}\n\n" if needle.system else ""
        depth = nth_depth / (self.n_depths - 1)

        def context(n: int) -> str:
            if n > 4 * len(book):  # all of it fits
                raise LengthError(
                    f"task {self.name}: {self.books[nth_book]} is too short for length {length}; ask for less"
                )
            snippet = book[:n]
            at = round(depth * n)
            above, below = snippet[:at], snippet[at:]
            if at:
                line, _, below = below.partition("\n")
                above += line
            return f"{system}{before}{above} {needle.text.replace(CHARACTER, name)}\n{below}"

        sample = Sample(
            index=index,
            context="",
            question=after.format(question=needle.question.replace(CHARACTER, name)),
            answer_prefix="",
            answers=(name,) if name else needle.answers,
            max_new_tokens=self.max_new_tokens,
            id=f"{needle.id}_{self.books[nth_book].stem}_{nth_depth}",
        )
        return fill_context(
            sample, context, unit="characters of the book", task=self.name, length=length, count_tokens=count_tokens
        )

    def metric_name(self) -> str:
        return "contains"

    def reference_answer(self, sample: Sample) -> str:
        return sample.answers[0]


def _needles_of(experiment: Mapping[str, Any]) -> list[Needle]:
    """The needles of one entry of a needle set: every test with every question."""
    needles = []
    for kind, asked in experiment["questions"].items():
        for test_id, test in experiment["tests"].items():
            text, question = experiment["needle"], asked
            distractor = experiment.get("distractors", {}).get(kind, "")
            for number, value in enumerate(test["input_args"], start=1):
                text, question = (part.replace(f"{{{number}}}", value) for part in (text, question))
            gold = test.get("gold_answers", [])
            needles.append(
                Needle(
                    id=f"{experiment['id']}_{test_id}_{kind}",
                    text=text,
                    question=question,
                    answers=(gold,) if isinstance(gold, str) else tuple(gold),
                    characters=tuple(experiment.get("character_set", ())) if CHARACTER in text else (),
                    template=experiment.get("task_template", TEMPLATE),
                    system=experiment.get("system_prompt", ""),
                    distractor=distractor,
                )
            )
    return needles
