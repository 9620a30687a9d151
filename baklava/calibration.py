"""Calibration prompts: texts with a known continuation, from random streams of their own."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm import tqdm

from baklava.errors import UserError
from baklava.files import read_json, write_json
from baklava.jobs import CalibrateJob
from baklava.models.load import LoadedModel, load_tokenizer

SCHEMA = 1


@dataclass(frozen=True)
class Prompt:
    """A context, the question about it (with the beginning of its answer), and the answer."""

    task: str
    index: int
    context: str
    question: str
    answer: str

    def token_ids(self, model: LoadedModel) -> tuple[list[int], list[int], list[int]]:
        """Context, question and answer as token ids; the answer ends with the end-of-sequence token."""
        end = model.tokenizer.eos_token_id
        answer = model.encode(self.answer) + ([end] if end is not None else [])
        return model.encode(self.context, begin=True), model.encode(self.question), answer


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
            calibration = cls(*(tuple(Prompt(**one) for one in values[name]) for name in ("profile", "search")))
        except (KeyError, TypeError) as error:
            raise UserError(f"{path}: not a calibration file ({error})") from None
        if values.get("fingerprint") != calibration.fingerprint:
            raise UserError(
                f"{path}: the prompts do not match their fingerprint; make them again with `baklava calibrate`"
            )
        return calibration


def calibrate(job: CalibrateJob) -> None:
    """Write calibration prompts, taking the tasks in turn."""
    settings = job.calibration
    tasks = [task.build() for task in settings.tasks]
    tokenizer = load_tokenizer(job.model)

    def count_tokens(text: str) -> int:
        return len(tokenizer.encode(text))

    prompts = []
    for i in tqdm(range(settings.n_profile + settings.n_search), desc=f"calibrate {job.model.name}", unit="prompt"):
        task = tasks[i % len(tasks)]
        sample = task.sample(
            split="calibration", seed=settings.seed, index=i, length=settings.length, count_tokens=count_tokens
        )
        question = sample.question + sample.answer_prefix
        prompts.append(Prompt(task.name, i, sample.context, question, task.reference_answer(sample)))
    Calibration(tuple(prompts[: settings.n_profile]), tuple(prompts[settings.n_profile :])).save(job.prompts)
