"""Prefill once, then go on from the same contexts with many budgets at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from baklava.budgets import Budgets
from baklava.cache import BudgetedCache
from baklava.context import ContextCache
from baklava.eviction import EvictionPolicy
from baklava.models.load import LoadedModel

# Rows that have ended leave the batch once they are so large a part of it; sooner costs more copying than it saves.
ENDED_PART = 0.25

# So many logits are held at a time where the loss of a text is measured.
MOST_LOGITS = 2**26
IGNORED = -100  # no target


@dataclass
class Sequences:
    """Rows of a batch and what they have read: a cache, real lengths `[B]`, and which positions are tokens `[B, T]`.

    `mask` is None where no row has padding.
    """

    cache: ContextCache | BudgetedCache
    lengths: Tensor
    mask: Tensor | None

    def read(self, model: LoadedModel, rows: Sequence[Sequence[int]], *, logits_to_keep: int) -> Tensor:
        """Read on; rows of different length are padded on the left. Logits `[B, logits_to_keep, vocabulary]`."""
        length = max(map(len, rows))
        device = model.device
        ids = torch.zeros(len(rows), length, dtype=torch.int64)
        real = torch.zeros(len(rows), length, dtype=torch.int64)
        for row, tokens in enumerate(rows):
            ids[row, length - len(tokens) :] = torch.tensor(tokens)
            real[row, length - len(tokens) :] = 1
        ids, real = ids.to(device), real.to(device)
        if self.mask is not None or min(map(len, rows)) < length:
            before = torch.ones(len(rows), self.cache.get_seq_length(), dtype=torch.int64, device=device)
            self.mask = torch.cat([before if self.mask is None else self.mask, real], 1)
        positions = (self.lengths[:, None] + real.cumsum(-1) - 1).clamp(min=0)
        self.lengths = self.lengths + real.sum(-1)
        output = model.model(
            ids,
            attention_mask=self.mask,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=logits_to_keep,
        )
        return output.logits

    @property
    def budgeted(self) -> BudgetedCache:
        assert isinstance(self.cache, BudgetedCache)
        return self.cache

    def kept_entries(self) -> list[int]:
        """Entries of the context that each row keeps, in all KV caches together."""
        return self.budgeted.kept_entries().sum((0, 2)).tolist()

    def row_bytes(self) -> list[int]:
        """Bytes of the compressed context of each row."""
        return self.budgeted.row_bytes().tolist()

    def select_rows(self, rows: Tensor) -> None:
        """Keep these rows, in this order."""
        self.budgeted.select_rows(rows)
        self.lengths = self.lengths[rows]
        self.mask = None if self.mask is None else self.mask[rows]


@torch.inference_mode()
def prefill(model: LoadedModel, contexts: Sequence[Sequence[int]], policies: Sequence[EvictionPolicy]) -> Sequences:
    """Full caches of contexts, watched by the eviction policies that will compress them."""
    cache = ContextCache(model.model.config, policies)
    sequences = Sequences(cache, torch.zeros(len(contexts), dtype=torch.int64, device=model.device), None)
    sequences.read(model, contexts, logits_to_keep=1)
    return sequences


def compressed(
    model: LoadedModel,
    prefilled: Sequences,
    budgets: Sequence[Budgets],
    policies: Sequence[EvictionPolicy],
    contexts: Sequence[int] | None = None,
    *,
    share: bool = False,
) -> Sequences:
    """One row per budget, each from one of the prefilled contexts (the first where none is named).

    With `share`, KV caches that a row keeps whole read the prefilled ones instead of copying them.
    """
    assert isinstance(prefilled.cache, ContextCache)
    source = torch.tensor([0] * len(budgets) if contexts is None else list(contexts))
    config = model.model.config
    cache = BudgetedCache.from_context(config, prefilled.cache, budgets, policies, contexts=source, share=share)
    here = source.to(model.device)
    return Sequences(cache, prefilled.lengths[here], None if prefilled.mask is None else prefilled.mask[here])


def continuation_losses(model: LoadedModel, rows: Sequences, question: Sequence[int], answer: Sequence[int]) -> Tensor:
    """Mean negative log-likelihood of the same answer's tokens in every row, `[B]`; the rows read it."""
    n_rows = len(rows.lengths)
    return answer_losses(model, rows, [question] * n_rows, [answer] * n_rows)


@torch.inference_mode()
def answer_losses(
    model: LoadedModel, rows: Sequences, questions: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]
) -> Tensor:
    """Mean negative log-likelihood of each row's answer after its question, `[B]`; neither may be empty.

    Read in as many steps as keep the logits below `MOST_LOGITS`.
    """
    ids = [[*question, *answer] for question, answer in zip(questions, answers, strict=True)]
    n = max(map(len, ids)) - 1  # columns to read; shorter rows begin later
    first = n - max(map(len, answers))  # the first of them that predicts an answer token
    targets = torch.full((len(ids), n), IGNORED)
    for row, answer in enumerate(answers):
        targets[row, n - len(answer) :] = torch.tensor(answer)
    targets = targets.to(model.device)
    step = max(1, MOST_LOGITS // (len(ids) * model.model.config.get_text_config(decoder=True).vocab_size))
    totals = torch.zeros(len(ids), device=model.device)
    start = 0
    while start < n:
        end = min(n, max(first, start) + step)
        part = [row[:-1][max(0, start - n + len(row) - 1) : max(0, end - n + len(row) - 1)] for row in ids]
        begin = max(first, start)
        logits = rows.read(model, part, logits_to_keep=end - begin).float()  # [B, end - begin, vocabulary]
        totals += torch.nn.functional.cross_entropy(
            logits.transpose(1, 2), targets[:, begin:end], reduction="none", ignore_index=IGNORED
        ).sum(-1)
        start = end
    return (totals / (targets != IGNORED).sum(-1)).cpu()


@torch.inference_mode()
def greedy_answers(
    model: LoadedModel,
    rows: Sequences,
    questions: Sequence[Sequence[int]],
    *,
    max_new_tokens: Sequence[int],
    one_line: Sequence[bool],
) -> list[list[int]]:
    """Greedy continuation of every row after its question, until an end token or so many tokens.

    A row of one line also ends at a new line, and its first token is neither.
    """
    answers: list[list[int]] = [[] for _ in questions]
    places = list(range(len(questions)))  # which question each row of the batch belongs to
    ended = set[int]()
    stop = _stop_tokens(model)
    stop_line = stop | set(model.encode("\n")[-1:])
    tokens: Sequence[Sequence[int]] = questions
    while True:
        logits = rows.read(model, tokens, logits_to_keep=1)[:, -1]  # [B, vocabulary]
        if tokens is questions and any(one_line):
            lines = torch.tensor([row for row, one in enumerate(one_line) if one], device=logits.device)
            logits[lines[:, None], torch.tensor(sorted(stop_line), device=logits.device)] = float("-inf")
        chosen = logits.argmax(-1).tolist()
        for place, token in zip(places, chosen, strict=True):
            if place in ended:
                continue
            if token in (stop_line if one_line[place] else stop):
                ended.add(place)
                continue
            answers[place].append(token)
            if len(answers[place]) >= max_new_tokens[place]:
                ended.add(place)
        going = [row for row, place in enumerate(places) if place not in ended]
        if not going:
            return answers
        if len(places) - len(going) >= ENDED_PART * len(places):
            rows.select_rows(torch.tensor(going, device=model.device))
            places, chosen = [places[row] for row in going], [chosen[row] for row in going]
        tokens = [[token] for token in chosen]


def _stop_tokens(model: LoadedModel) -> set[int]:
    stop = model.model.generation_config.eos_token_id
    return set(stop if isinstance(stop, list) else [stop]) - {None}
