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
