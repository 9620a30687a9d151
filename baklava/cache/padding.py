"""Padding of a batch: how much of it stands before each row's first token, and masks that must say so too."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from baklava.errors import UserError


def padding_of(mask: Tensor) -> Tensor:
    """Padding `[B]` before each row of a mask `[B, T]` (not 0: a token), int64 on the CPU.

    Raises `UserError` for padding elsewhere, and for a row that holds nothing else.
    """
    tokens = mask.bool().cpu()
    if not (real := tokens.any(-1)).all():
        raise UserError(f"row {real.int().argmin()} of the batch is padding only; leave it out")
    padding = tokens.int().argmax(-1)  # the first that is a token
    if not (tokens.sum(-1) + padding == tokens.shape[1]).all():
        raise UserError(
            "a budgeted cache takes batches that are padded on the left, without gaps; "
            "set tokenizer.padding_side='left'"
        )
    return padding


def padding_given(mask: Tensor | None, shape: Sequence[int]) -> Tensor | None:
    """Padding `[B]` that a user's mask shows for tokens of `shape` `[B, T]`."""
    if mask is None:
        return None
    if list(mask.shape) != list(shape):
        raise UserError(f"the attention mask must be [batch, length] {list(shape)}, got {list(mask.shape)}")
    return padding_of(mask)


def padding_shown(mask: Tensor | None) -> Tensor | None:
    """Padding `[B]` that an attention mask `[B, 1, Q, T]` (true: visible) shows at its last query."""
    if mask is None:
        return None
    check_kind(mask)
    return padding_of(mask[:, 0, -1])


def check_kind(mask: Tensor) -> None:
    """Raises `UserError` for another mask than transformers makes of a padding mask."""
    if mask.dtype != torch.bool or mask.ndim != 4 or mask.shape[1] != 1:
        raise UserError("a budgeted cache takes a padding mask [batch, length], not a ready-made attention mask")


def check_context(mask: Tensor | None, padding: Tensor, n_later: Tensor, length: int) -> None:
    """Raises `UserError` unless later tokens see of each row's context all that was read of it, and nothing else.

    Of `length` positions, the first `padding` `[B]` must be padding and the last `n_later` `[B]`, which came after the
    context, may be anything. `mask` is `[B, 1, Q, T]` (true: visible), None where all is visible.
    """
    what = "pass the attention mask of all tokens, with the padding that the context was read with"
    if mask is None:
        if padding.any():
            raise UserError(f"the context was read with padding, the tokens after it come without; {what}")
        return
    check_kind(mask)
    if mask.shape[-1] != length:
        raise UserError(f"{length} positions were read, the attention mask shows {mask.shape[-1]}; {what}")
    position = torch.arange(length, device=mask.device)
    padding, n_later = padding.to(mask.device), n_later.to(mask.device)
    expected = position >= padding[:, None]  # [B, T]
    after = position >= length - n_later[:, None]
    if not ((mask[:, 0] == expected[:, None]) | after[:, None]).all():
        raise UserError(f"the attention mask shows another context than was read; {what}")
