"""Calibration prompts: texts with a known continuation, from random streams that nothing else uses."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from baklava.calibration.look_back import positions_that_look_back
from baklava.errors import UserError
from baklava.experiment.jobs import CalibrateJob
from baklava.experiment.schema import CalibrationConfig, ModelConfig, TextConfig
from baklava.models.encoder import Encoder, Tokens
from baklava.models.load import LoadedModel, load_model, load_tokenizer
from baklava.models.shape import read_shape
from baklava.system.files import read_json, write_json
from baklava.tasks.base import random_stream
from baklava.tasks.text.documents import Documents, open_documents, pieces, split_tokens

SCHEMA = 3


@dataclass(frozen=True)
class Prompt:
    """A context, the question about it (with the beginning of its answer), and the answer.

    Of plain text, `question` is the beginning of what follows the context and `answer` the rest; the text then goes on
    (`ends` is false). `look_back` are the positions that must look back to the context, counted in tokens from its
    end; None: all of question and answer.
    """

    task: str
    index: int
    context: str
    question: str
    answer: str
    look_back: tuple[int, ...] | None = None
    ends: bool = True

    def token_ids(self, model: LoadedModel) -> tuple[list[int], list[int], list[int]]:
        """Context, question and answer as tokens of one text; an answer that ends has the end-of-sequence token."""
        end = model.tokenizer.eos_token_id if self.ends else None
        parts = model.encoder.parts([self.context, self.question, self.answer], begin=True)
        context, question, answer = Tokens.of(*parts)
        return context, question, [*answer, end] if end is not None else answer

    def look_back_positions(self, n_context: int, n_after: int) -> list[int]:
        """The positions that must look back, for a prompt of `n_context` tokens and `n_after` after them.

        Raises `UserError` where the prompt has no such position.
        """
        after = range(n_after) if self.look_back is None else self.look_back
        if not after or not 0 <= min(after) <= max(after) < n_after:
            raise UserError(
                f"calibration prompt {self.index} ({self.task}): look_back must name positions from 0 to "
                f"{n_after - 1}; make the prompts again with `baklava calibrate`"
            )
        return [n_context + position for position in after]

    @classmethod
    def of(cls, values: dict[str, Any]) -> Prompt:
        """A prompt as it is saved."""
        look_back = values["look_back"]
        return cls(**{**values, "look_back": None if look_back is None else tuple(look_back)})


@dataclass(frozen=True)
class Calibration:
    """The prompts to profile, the prompts that guide the search, and a fingerprint of all of them."""

    profile: tuple[Prompt, ...]
    search: tuple[Prompt, ...]

    @property
    def fingerprint(self) -> str:
        """Hex digest that changes with any prompt."""
        text = json.dumps([[asdict(prompt) for prompt in part] for part in (self.profile, self.search)])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def save(self, path: Path) -> None:
        parts = {"profile": self.profile, "search": self.search}
        prompts = {name: [asdict(prompt) for prompt in part] for name, part in parts.items()}
        write_json(path, {"fingerprint": self.fingerprint, **prompts}, schema=SCHEMA)

    @classmethod
    def load(cls, path: Path) -> Calibration:
        """Read prompts. Raises `UserError` where the file is broken or was changed by hand."""
        values = read_json(path, schema=SCHEMA, what="calibration")
        try:
            calibration = cls(*(tuple(Prompt.of(one) for one in values[name]) for name in ("profile", "search")))
        except (KeyError, TypeError) as error:
            raise UserError(f"{path}: not a calibration file ({error})") from None
        if not (calibration.profile and calibration.search):
            raise UserError(
                f"{path}: no prompts to profile, or none to guide the search; make them again with `baklava calibrate`"
            )
        if values.get("fingerprint") != calibration.fingerprint:
            raise UserError(
                f"{path}: the prompts do not match their fingerprint; make them again with `baklava calibrate`"
            )
        return calibration


# The part of a text's continuation that is fed before the losses count, as the question of a task is.
LEAD_IN = 0.125

SPLIT = "calibration"


def task_prompts(settings: CalibrationConfig, tokenizer: PreTrainedTokenizerBase) -> Iterator[Prompt]:
    """Prompts of the tasks, in turn."""
    tasks = [task.build() for task in settings.tasks]
    count_tokens = Encoder(tokenizer).count
    index = 0
    while True:
        task = tasks[index % len(tasks)]
        sample = task.sample(
            split=SPLIT, seed=settings.seed, index=index, length=settings.length, count_tokens=count_tokens
        )
        question = sample.question + sample.answer_prefix
        if not question:  # nothing would predict the answer's first token but the context, which is compressed
            raise UserError(
                f"calibration.tasks: task {task.name} asks nothing after its context; choose another, or "
                "calibrate on its text with calibration=text calibration.text.data=FILE"
            )
        answer = task.reference_answer(sample)
        if not (sample.context and answer):
            lacking = "answer" if sample.context else "context"
            raise UserError(
                f"calibration.tasks: task {task.name}: its sample {index} has no {lacking}; leave such samples out, or "
                "choose another task"
            )
        yield Prompt(task.name, index, sample.context, question, answer)
        index += 1


def _documents(text: TextConfig) -> Documents:
    return open_documents(text, who=f"text {text.name}", key="calibration.text.data")


def text_prompts(
    text: TextConfig, settings: CalibrationConfig, tokenizer: PreTrainedTokenizerBase, loaded: LoadedModel
) -> Iterator[Prompt]:
    """Pieces of a text of at most `length` tokens, none overlapping another. Ends where the text does."""
    encoder = Encoder(tokenizer)
    count_tokens = encoder.count

    def count_later_tokens(text: str) -> int:
        return len(encoder.later(text))

    lead = max(1, round(LEAD_IN * text.continuation))
    sizes = (settings.length - text.continuation, lead, text.continuation - lead)
    rng = random_stream(split=SPLIT, name=text.name, seed=settings.seed, index=0)
    found = pieces(_documents(text), length=settings.length, count_tokens=count_tokens, rng=rng)
    for index, piece in enumerate(found):
        context, question, answer = split_tokens(piece, sizes, (count_tokens, count_later_tokens, count_later_tokens))
        prompt = Prompt(text.name, index, context, question, answer, ends=False)
        context_ids, question_ids, answer_ids = prompt.token_ids(loaded)
        look_back = positions_that_look_back(
            loaded,
            context_ids,
            question_ids + answer_ids,
            part=text.look_back,
            sinks=text.sinks,
            window=text.window,
        )
        yield replace(prompt, look_back=look_back)


def calibration_prompts(
    settings: CalibrationConfig, n: int, tokenizer: PreTrainedTokenizerBase, loaded: LoadedModel | None
) -> Iterator[Prompt]:
    """The first `n` prompts: of the tasks, of a text, or of both by turns. Only a text takes the model (`loaded`).

    Raises `UserError` where the text is too short.
    """
    sources: list[Iterator[Prompt]] = []
    if settings.tasks:
        sources.append(task_prompts(settings, tokenizer))
    if settings.text is not None:
        assert loaded is not None
        sources.append(text_prompts(settings.text, settings, tokenizer, loaded))
    for i in tqdm(range(n), desc=f"calibrate {settings.name}", unit="prompt"):
        prompt = next(sources[i % len(sources)], None)
        if prompt is None:
            assert settings.text is not None  # tasks never end
            raise UserError(
                f"text {settings.text.name}: {settings.text.data} has {i // len(sources)} pieces of {settings.length} "
                f"tokens, and {n} calibration prompts are asked for; give more text, or lower calibration.length, "
                "n_profile or n_search"
            )
        yield prompt


def calibrate(job: CalibrateJob) -> None:
    """Write calibration prompts: those to profile, then those that guide the search."""
    settings, loaded = job.calibration, None
    shape = read_shape(job.model)  # first: a model that cannot be used is refused before any work on it
    if settings.text is not None:
        _documents(settings.text).read(0)  # is it readable? Loading a model takes longer
        loaded = load_model(job.model)
    tokenizer = load_tokenizer(job.model) if loaded is None else loaded.tokenizer
    prompts: list[Prompt] = []
    for prompt in calibration_prompts(settings, settings.n_profile + settings.n_search, tokenizer, loaded):
        if not prompts:
            _check_vocabulary(job.model, prompt, shape.vocabulary)
        prompts.append(prompt)
    Calibration(tuple(prompts[: settings.n_profile]), tuple(prompts[settings.n_profile :])).save(job.prompts)


def _check_vocabulary(model: ModelConfig, prompt: Prompt, vocabulary: int) -> None:
    largest = max(load_tokenizer(model).encode(prompt.context + prompt.question + prompt.answer))
    if largest >= vocabulary:
        raise UserError(
            f"model {model.name}: its tokenizer gives token {largest}, and the model has {vocabulary} tokens; "
            f"put the tokenizer that belongs to it into {model.path}"
        )
