"""Left padding of a batch, read from the masks that show it, and masks that must agree with it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from baklava.errors import UserError


def count_padding(mask: Tensor) -> Tensor:
    """Count the padding `[B]` before each row of a mask `[B, T]` (0: padding); int64 on the CPU.

    Raises `UserError` for padding elsewhere, and for a row without tokens.
    """
    tokens = mask.bool().cpu()
    if not (real := tokens.any(-1)).all():
        raise UserError(f"row {real.int().argmin()} of the batch is padding only; leave it out")
    padding = tokens.int().argmax(-1)  # index of the first token
    if not (tokens.sum(-1) + padding == tokens.shape[1]).all():
        raise UserError(
            "a budgeted cache takes batches that are padded on the left, without gaps; "
            "set tokenizer.padding_side='left'"
        )
    return padding


def padding_of_tokens(mask: Tensor | None, shape: Sequence[int]) -> Tensor | None:
    """Padding `[B]` that a user's mask shows for tokens of shape `[B, T]`; None without a mask."""
    if mask is None:
        return None
    if list(mask.shape) != list(shape):
        raise UserError(f"the attention mask must be [batch, length] {list(shape)}, got {list(mask.shape)}")
    return count_padding(mask)


def padding_of_attention(mask: Tensor | None) -> Tensor | None:
    """Padding `[B]` that an attention mask `[B, 1, Q, T]` (true: visible) shows to its last query."""
    if mask is None:
        return None
    check_is_padding_mask(mask)
    return count_padding(mask[:, 0, -1])


def check_is_padding_mask(mask: Tensor) -> None:
    """Raises `UserError` for a mask that transformers did not make from a padding mask."""
    if mask.dtype != torch.bool or mask.ndim != 4 or mask.shape[1] != 1:
        raise UserError("a budgeted cache takes a padding mask [batch, length], not a ready-made attention mask")


def check_context(mask: Tensor | None, padding: Tensor, n_later: Tensor, length: int) -> None:
    """Raises `UserError` unless later tokens see exactly the context that was read, in every row.

    Of `length` positions, the first `padding` `[B]` must be padding. The last `n_later` `[B]` came after the context
    and may be anything. `mask` is `[B, 1, Q, T]` (true: visible), None where all is visible.
    """
    remedy = "pass the attention mask of all tokens, with the padding that the context was read with"
    if mask is None:
        if padding.any():
            raise UserError(f"the context was read with padding, the tokens after it come without; {remedy}")
        return
    check_is_padding_mask(mask)
    if mask.shape[-1] != length:
        raise UserError(f"{length} positions were read, the attention mask shows {mask.shape[-1]}; {remedy}")
    position = torch.arange(length, device=mask.device)
    padding, n_later = padding.to(mask.device), n_later.to(mask.device)
    expected = position >= padding[:, None]  # [B, T]
    after = position >= length - n_later[:, None]
    if not ((mask[:, 0] == expected[:, None]) | after[:, None]).all():
        raise UserError(f"the attention mask shows another context than was read; {remedy}")


def check_tokens(input_ids: Tensor, chunk: int) -> None:
    """Raises `UserError` for a context that is no token ids `[batch, length]`, or a chunk of none."""
    if input_ids.ndim != 2:
        raise UserError(f"a context is token ids [batch, length], got {list(input_ids.shape)}")
    if chunk < 1 or input_ids.shape[1] < 1:
        raise UserError(f"chunk and context must be at least one token, got {chunk} and {input_ids.shape[1]}")
