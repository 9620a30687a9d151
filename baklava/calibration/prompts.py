"""Calibration prompts and the file that holds them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from baklava.errors import UserError
from baklava.models.encoder import Tokens
from baklava.models.load import LoadedModel
from baklava.system.files import read_json, write_json

SCHEMA = 3


@dataclass(frozen=True)
class Prompt:
    """A context, the question about it (with the beginning of its answer), and the answer.

    In plain text, `question` is the beginning of what follows the context and `answer` the remainder, and the text
    continues after it (`ends` is false). `look_back` holds the positions whose queries predict context-dependent
    tokens, counted from the end of the context; None: all of question and answer.
    """

    task: str
    index: int
    context: str
    question: str
    answer: str
    look_back: tuple[int, ...] | None = None
    ends: bool = True

    def token_ids(self, model: LoadedModel) -> tuple[list[int], list[int], list[int]]:
        """Context, question and answer as tokens of one text; with `ends`, the answer has the end-of-sequence token."""
        end = model.tokenizer.eos_token_id if self.ends else None
        parts = model.encoder.encode_parts([self.context, self.question, self.answer], begin=True)
        context, question, answer, _ = Tokens.of(*parts)
        return context, question, [*answer, end] if end is not None else answer

    def context_dependent_positions(self, n_context: int, n_after: int) -> list[int]:
        """The context-dependent positions in a prompt of `n_context` tokens with `n_after` tokens after them.

        Raises `UserError` where the prompt has no such position, or one outside of question and answer.
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
        """Make a prompt from its saved values."""
        look_back = values["look_back"]
        return cls(**{**values, "look_back": None if look_back is None else tuple(look_back)})


@dataclass(frozen=True)
class Calibration:
    """The prompts to profile and the prompts that guide the search."""

    profile: tuple[Prompt, ...]
    search: tuple[Prompt, ...]

    @property
    def fingerprint(self) -> str:
        """Hex digest that changes with any prompt."""
        text = json.dumps([[asdict(prompt) for prompt in prompts] for prompts in (self.profile, self.search)])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def save(self, path: Path) -> None:
        """Write a JSON file, atomically."""
        saved = {
            "fingerprint": self.fingerprint,
            "profile": [asdict(prompt) for prompt in self.profile],
            "search": [asdict(prompt) for prompt in self.search],
        }
        write_json(path, saved, schema=SCHEMA)

    @classmethod
    def load(cls, path: Path) -> Calibration:
        """Read prompts. Raises `UserError` for a file that is broken or was changed by hand."""
        values = read_json(path, schema=SCHEMA, what="calibration")
        try:
            calibration = cls(*(tuple(Prompt.of(saved) for saved in values[name]) for name in ("profile", "search")))
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
