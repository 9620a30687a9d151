"""Greedy decoding of rows that come and go: short answers make room for others, long ones go on in company."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import torch
from torch import Tensor

from baklava.inference.batch import BatchState
from baklava.models.chat import chat_template
from baklava.models.load import LoadedModel

# Rows that have ended leave the batch once they are so large a part of it; sooner costs more copying than it saves.
ENDED_FRACTION = 0.25

What = TypeVar("What")


@dataclass
class DecodingRow(Generic[What]):
    """An answer under way to `what`: its tokens so far, its part of the seconds that it took."""

    what: What
    max_new_tokens: int
    one_line: bool  # it also ends at a new line, and its first token is neither that nor an end
    seconds: float = 0.0
    tokens: list[int] = field(default_factory=list)
    ended: bool = False


class DecodingBatch(Generic[What]):
    """Rows that are decoded together, each until an end token or its number of tokens."""

    def __init__(self, model: LoadedModel):
        self._model = model
        self._sequences: BatchState | None = None
        self._rows: list[DecodingRow[What]] = []  # of the batch; those that have ended stay for a while
        self._stop = _stop_tokens(model)
        self._stop_line = self._stop | set(model.encoder.ids("\n")[-1:])

    @property
    def going(self) -> list[DecodingRow[What]]:
        """The rows that have not ended."""
        return [row for row in self._rows if not row.ended]

    @torch.inference_mode()
    def add(
        self, sequences: BatchState, questions: Sequence[Sequence[int]], rows: Sequence[DecodingRow[What]]
    ) -> list[DecodingRow[What]]:
        """Read the questions of new rows and decode them with the others; returns those that end at once."""
        if not rows:
            return []
        started = time.perf_counter()
        logits = sequences.read(self._model, questions, logits_to_keep=1)[:, -1]  # [B, vocabulary]
        if lines := [place for place, row in enumerate(rows) if row.one_line]:
            stop = torch.tensor(sorted(self._stop_line), device=logits.device)
            logits[torch.tensor(lines, device=logits.device)[:, None], stop] = float("-inf")
        ended = self._chosen(rows, logits)
        if len(ended) < len(rows):
            if self._sequences is None:
                self._sequences = sequences
            else:
                self._sequences.append_rows(sequences)
            self._rows = [*self._rows, *rows]
        _share(rows, started)
        return ended

    @torch.inference_mode()
    def step(self) -> list[DecodingRow[What]]:
        """One more token of every row; returns the rows that end with it. Where memory runs out, none has ended."""
        if not self._rows:
            return []
        started = time.perf_counter()
        self._leave()
        rows = self._rows
        assert self._sequences is not None
        last = [row.tokens[-1:] or [0] for row in rows]  # an answer that ended before it began reads anything
        self._sequences.restart([place for place, row in enumerate(rows) if row.ended])
        logits = self._sequences.read(self._model, last, logits_to_keep=1)[:, -1]
        ended = self._chosen(rows, logits)
        if not self.going:
            self._sequences, self._rows = None, []
        _share(rows, started)
        return ended

    def _chosen(self, rows: Sequence[DecodingRow[What]], logits: Tensor) -> list[DecodingRow[What]]:
        """Take the likeliest token of every row that goes on; returns those that end."""
        going = [(row, token) for row, token in zip(rows, logits.argmax(-1).tolist(), strict=True) if not row.ended]
        for row, token in going:
            row.ended = token in (self._stop_line if row.one_line else self._stop)
            if not row.ended:
                row.tokens.append(token)
                row.ended = len(row.tokens) >= row.max_new_tokens
        return [row for row, _ in going if row.ended]

    def _leave(self) -> None:
        """Rows that have ended leave, once they are many."""
        going = [place for place, row in enumerate(self._rows) if not row.ended]
        n_ended = len(self._rows) - len(going)
        if n_ended and n_ended >= ENDED_FRACTION * len(self._rows):
            assert self._sequences is not None
            self._sequences.select_rows(torch.tensor(going, device=self._model.device))
            self._rows = [self._rows[place] for place in going]


def _share(rows: Sequence[DecodingRow[What]], started: float) -> None:
    """Add to the seconds of every row its part of those since `started`."""
    part = (time.perf_counter() - started) / len(rows)
    for row in rows:
        row.seconds += part


def _stop_tokens(model: LoadedModel) -> set[int]:
    """What ends an answer: the settings of generation say so, or the tokenizer does, or the chat template."""
    tokenizer, generation = model.tokenizer, model.model.generation_config.eos_token_id
    stop = {*(generation if isinstance(generation, list | tuple) else [generation]), tokenizer.eos_token_id}
    template = chat_template(tokenizer)
    if template is not None:
        after = model.encoder.ids(template.turn_end().strip())[:1]
        stop |= {token for token in after if token in tokenizer.added_tokens_decoder}
    return stop - {None}
