"""Prefills contexts once, and continues from each with many budgets at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from baklava.budgets import Budgets, Decoding
from baklava.cache.attended import AttendedCache
from baklava.cache.budgeted import BudgetedCache
from baklava.cache.prefill import ContextCache, Repetition
from baklava.decoder.length_dependent_rope import fixed_rotation
from baklava.errors import UserError
from baklava.eviction import EvictionPolicy
from baklava.models.load import LoadedModel

MAX_LOGITS = 2**26  # held at a time where the loss of a text is measured
IGNORED = -100  # the target where none is


@dataclass
class BatchState:
    """What the rows of a batch have read: a cache, their lengths in tokens `[B]`, and a mask of the tokens `[B, T]`.

    `mask` is None if no row has padding. Where the rotation depends on the length of a text, all rows are rotated as
    texts of `rotated_for` tokens from the first token to the last, and no row may become longer.
    """

    cache: AttendedCache
    lengths: Tensor
    mask: Tensor | None
    rotated_for: int | None = None

    def read(self, model: LoadedModel, rows: Sequence[Sequence[int]], *, logits_to_keep: int) -> Tensor:
        """Append tokens to every row, padded on the left to one length. Logits `[B, logits_to_keep, vocabulary]`."""
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
        with nullcontext() if self.rotated_for is None else fixed_rotation(model.model, self.rotated_for):
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

    @property
    def repetitions(self) -> Mapping[EvictionPolicy, Repetition]:
        """What repeating the prefilled contexts took, for policies that need it."""
        assert isinstance(self.cache, ContextCache)
        return self.cache.repetitions

    def kept_entries(self) -> list[int]:
        """Entries of the context that each row keeps, summed over all KV caches."""
        return self.budgeted.kept_entries().sum((0, 2)).tolist()

    def row_bytes(self) -> list[int]:
        """Bytes of the compressed context of each row."""
        return self.budgeted.row_bytes().tolist()

    def select_rows(self, rows: Tensor) -> None:
        """Keep these rows, in this order."""
        self.budgeted.select_rows(rows)
        self.lengths = self.lengths[rows]
        self.mask = None if self.mask is None else self.mask[rows]

    def restart(self, rows: Sequence[int]) -> None:
        """Move finished rows back to the first position, so that they never pass the last one as they go on reading."""
        if rows:
            self.lengths[torch.tensor(rows, device=self.lengths.device)] = 0

    def append_rows(self, other: BatchState) -> None:
        """Append the rows of another state; the shorter rows are padded on the left."""
        lengths = [state.cache.get_seq_length() for state in (self, other)]
        if self.mask is not None or other.mask is not None or lengths[0] != lengths[1]:
            self.mask = torch.cat([state._padded_mask(max(lengths)) for state in (self, other)])
        self.lengths = torch.cat([self.lengths, other.lengths])
        self.budgeted.append_rows(other.budgeted)

    def _padded_mask(self, length: int) -> Tensor:
        """The mask, padded on the left to `length` positions."""
        own = self.cache.get_seq_length()
        mask = self.mask
        if mask is None:
            mask = torch.ones(len(self.lengths), own, dtype=torch.int64, device=self.lengths.device)
        return torch.nn.functional.pad(mask, (length - own, 0))


@torch.inference_mode()
def prefill(
    model: LoadedModel,
    contexts: Sequence[Sequence[int]],
    policies: Sequence[EvictionPolicy],
    length: int | None = None,
    chunk: int | None = None,
) -> BatchState:
    """Read contexts into full caches, observed by the eviction policies that will compress them.

    `length` is that of the longest text, with all that is read after its context; only models whose rotation depends on
    it need it. With `chunk`, that many tokens of each context are read at a time. Raises `UserError` for texts of
    different rotations.
    """
    lengths = [len(context) for context in contexts]
    longest = max(lengths)
    rotations = {model.rotated_for(n) for n in (lengths if length is None else [length])}
    if len(rotations) > 1:
        raise UserError(f"contexts of {min(lengths)} and of {longest} tokens have different rotations; read them apart")
    config = model.model.config
    paths = model.attention_paths if any(policy.needs_projection for policy in policies) else None
    if chunk is None or chunk >= longest:
        cache, step = ContextCache(config, policies, paths=paths), longest
    else:
        padding = torch.tensor([longest - n for n in lengths])
        cache, step = ContextCache(config, policies, longest, padding, paths), chunk
    nothing_read = torch.zeros(len(contexts), dtype=torch.int64, device=model.device)
    state = BatchState(cache, nothing_read, None, rotations.pop())
    for start in range(0, longest, step):
        begins = [start - longest + n for n in lengths]  # per row; below 0 while there is only padding
        blocks = [
            context[max(0, begin) : max(0, begin + step)] for context, begin in zip(contexts, begins, strict=True)
        ]
        state.read(model, blocks, logits_to_keep=1)
    if any(policy.repeats for policy in policies):
        from baklava.inference.repetition import repeat_contexts

        repeat_contexts(model, state, contexts, policies)
    return state


def compress_rows(
    model: LoadedModel,
    prefilled: BatchState,
    budgets: Sequence[Budgets],
    policies: Sequence[EvictionPolicy],
    contexts: Sequence[int] | None = None,
    *,
    decoding: Decoding = "grow",
    compress_above: int = 0,
    share: bool = False,
) -> BatchState:
    """One row per budget, compressed from the prefilled context with the index in `contexts` (by default the first).

    Contexts of at most `compress_above` tokens are kept whole. With `share`, KV caches that a row fully keeps are read
    from the prefilled cache instead of copied.
    """
    assert isinstance(prefilled.cache, ContextCache)
    source = torch.tensor([0] * len(budgets) if contexts is None else list(contexts))
    config = model.model.config
    cache = BudgetedCache.from_context(
        config, prefilled.cache, budgets, policies, decoding, compress_above, contexts=source, share=share
    )
    source = source.to(model.device)
    mask = None if prefilled.mask is None else prefilled.mask[source]
    return BatchState(cache, prefilled.lengths[source], mask, prefilled.rotated_for)


def continuation_losses(model: LoadedModel, rows: BatchState, question: Sequence[int], answer: Sequence[int]) -> Tensor:
    """Mean negative log-likelihood of the tokens of one answer that every row reads, `[B]`."""
    n_rows = len(rows.lengths)
    return answer_losses(model, rows, [question] * n_rows, [answer] * n_rows)


@torch.inference_mode()
def continuation_divergences(
    model: LoadedModel, rows: BatchState, question: Sequence[int], answer: Sequence[int]
) -> Tensor:
    """Mean KL divergence of every row from the first, over the tokens of one answer that all read, `[B]`.

    It compares the distributions of the next token, in nats: how much worse a row codes what the first row would write.
    """
    n_rows = len(rows.lengths)
    totals = torch.zeros(n_rows, device=model.device)
    for logits, _ in _read_answers(model, rows, [question] * n_rows, [answer] * n_rows):
        totals += next_token_divergences(logits, logits[:1].log_softmax(-1)).sum(-1)
    return (totals / len(answer)).cpu()


def next_token_divergences(logits: Tensor, reference: Tensor) -> Tensor:
    """KL divergence `[..., Q]` of the distributions of `logits` from log-probabilities, both `[..., Q, vocabulary]`."""
    return (reference.exp() * (reference - logits.log_softmax(-1))).sum(-1)


@torch.inference_mode()
def answer_losses(
    model: LoadedModel, rows: BatchState, questions: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]
) -> Tensor:
    """Mean negative log-likelihood of each row's answer after its question, `[B]`; neither may be empty."""
    totals = torch.zeros(len(answers), device=model.device)
    for logits, targets in _read_answers(model, rows, questions, answers):
        totals += torch.nn.functional.cross_entropy(
            logits.transpose(1, 2), targets, reduction="none", ignore_index=IGNORED
        ).sum(-1)
    return (totals / torch.tensor([len(answer) for answer in answers], device=model.device)).cpu()


def _read_answers(
    model: LoadedModel, rows: BatchState, questions: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits `[B, n, vocabulary]` in float32 and the tokens `[B, n]` that they predict, or `IGNORED`, block by block.

    The answers are read in as many steps as keep the logits below `MAX_LOGITS`.
    """
    ids = [[*question, *answer] for question, answer in zip(questions, answers, strict=True)]
    n = max(map(len, ids)) - 1  # columns to read; shorter rows begin later
    first = n - max(map(len, answers))  # the first of them that predicts an answer token
    targets = torch.full((len(ids), n), IGNORED)
    for row, answer in enumerate(answers):
        targets[row, n - len(answer) :] = torch.tensor(answer)
    targets = targets.to(model.device)
    step = max(1, MAX_LOGITS // (len(ids) * model.model.config.get_text_config(decoder=True).vocab_size))
    start = 0
    while start < n:
        end = min(n, max(first, start) + step)
        blocks = [row[:-1][max(0, start - n + len(row) - 1) : max(0, end - n + len(row) - 1)] for row in ids]
        begin = max(first, start)
        yield rows.read(model, blocks, logits_to_keep=end - begin).float(), targets[:, begin:end]
        start = end
