"""Continuous batching for greedy decoding: finished rows leave the batch, new ones join it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Generic, TypeVar

import torch
from torch import Tensor

from baklava.inference.batch import BatchState
from baklava.models.chat import find_chat_template
from baklava.models.load import LoadedModel

# Finished rows leave the batch once they are this fraction of it; sooner costs more copying than it saves.
FINISHED_FRACTION = 0.25

Request = TypeVar("Request")


@dataclass
class DecodingRow(Generic[Request]):
    """The answer to a request in progress: its tokens so far, and its share of the seconds that they took."""

    request: Request
    max_new_tokens: int
    one_line: bool  # the answer also ends at a new line, and its first token is neither that nor an end token
    seconds: float = 0.0
    tokens: list[int] = field(default_factory=list)
    finished: bool = False


class DecodingBatch(Generic[Request]):
    """Rows that are decoded together, each until an end token or its number of tokens."""

    def __init__(self, model: LoadedModel):
        self._model = model
        self._state: BatchState | None = None
        self._rows: list[DecodingRow[Request]] = []  # one per row of the state; finished ones stay for a while
        self._stop = _stop_tokens(model)
        self._stop_line = self._stop | set(model.encoder.encode("\n")[-1:])

    @property
    def active(self) -> list[DecodingRow[Request]]:
        """The rows that are not finished."""
        return [row for row in self._rows if not row.finished]

    @torch.inference_mode()
    def add_rows(
        self,
        state: BatchState,
        questions: Sequence[Sequence[int]],
        rows: Sequence[DecodingRow[Request]],
        steps: Sequence[int] = (),
    ) -> list[DecodingRow[Request]]:
        """Read the questions of new rows, and decode these with the others; returns those that finish at once.

        With `steps`, so many tokens are read at a time, of questions of one length; it matters where tokens overwrite
        entries.
        """
        if not rows:
            return []
        started = time.perf_counter()
        bounds = list(accumulate(steps, initial=0)) if steps else [0, max(map(len, questions))]
        for start, end in pairwise(bounds):
            some = [question[start:end] for question in questions]
            logits = state.read(self._model, some, logits_to_keep=1)[:, -1]  # [B, vocabulary]
        if one_line := [index for index, row in enumerate(rows) if row.one_line]:
            stop = torch.tensor(sorted(self._stop_line), device=logits.device)
            logits[torch.tensor(one_line, device=logits.device)[:, None], stop] = float("-inf")
        finished = self._append_tokens(rows, logits)
        if len(finished) < len(rows):
            if self._state is None:
                self._state = state
            else:
                self._state.append_rows(state)
            self._rows = [*self._rows, *rows]
        _add_seconds(rows, started)
        return finished

    @torch.inference_mode()
    def step(self) -> list[DecodingRow[Request]]:
        """Decode one more token of every row; returns the rows that finish. If memory runs out, none has finished."""
        if not self._rows:
            return []
        started = time.perf_counter()
        self._drop_finished()
        rows = self._rows
        assert self._state is not None
        last = [row.tokens[-1:] or [0] for row in rows]  # a row that finished without a token reads anything
        self._state.restart([index for index, row in enumerate(rows) if row.finished])
        logits = self._state.read(self._model, last, logits_to_keep=1)[:, -1]
        finished = self._append_tokens(rows, logits)
        if not self.active:
            self._state, self._rows = None, []
        _add_seconds(rows, started)
        return finished

    def _append_tokens(self, rows: Sequence[DecodingRow[Request]], logits: Tensor) -> list[DecodingRow[Request]]:
        """Append the likeliest token to every active row; returns the rows that finish."""
        active = [(row, token) for row, token in zip(rows, logits.argmax(-1).tolist(), strict=True) if not row.finished]
        for row, token in active:
            row.finished = token in (self._stop_line if row.one_line else self._stop)
            if not row.finished:
                row.tokens.append(token)
                row.finished = len(row.tokens) >= row.max_new_tokens
        return [row for row, _ in active if row.finished]

    def _drop_finished(self) -> None:
        """Take finished rows out of the batch once they are many."""
        active = [index for index, row in enumerate(self._rows) if not row.finished]
        n_finished = len(self._rows) - len(active)
        if n_finished and n_finished >= FINISHED_FRACTION * len(self._rows):
            assert self._state is not None
            self._state.select_rows(torch.tensor(active, device=self._model.device))
            self._rows = [self._rows[index] for index in active]


def _add_seconds(rows: Sequence[DecodingRow[Request]], started: float) -> None:
    """Spread the seconds since `started` evenly over the rows."""
    seconds = (time.perf_counter() - started) / len(rows)
    for row in rows:
        row.seconds += seconds


def _stop_tokens(model: LoadedModel) -> set[int]:
    """Tokens that end an answer, from the generation config, the tokenizer and the chat template's end of a turn."""
    tokenizer, generation = model.tokenizer, model.model.generation_config.eos_token_id
    stop = {*(generation if isinstance(generation, list | tuple) else [generation]), tokenizer.eos_token_id}
    template = find_chat_template(tokenizer)
    if template is not None:
        turn_end = model.encoder.encode(template.find_turn_end().strip())[:1]
        stop |= {token for token in turn_end if token in tokenizer.added_tokens_decoder}
    return stop - {None}
