"""Quantised vectors: codes of a few bits, with the scale and zero point of each group of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from baklava.budgets.bits import EXACT
from baklava.cache.ragged_layout import writable
from baklava.errors import UserError

SCALES = torch.float16
SMALLEST = 2.0**-24  # the least float16 above 0, so that equal numbers need no case of their own
# Numbers that are rounded at a time, on a CPU and elsewhere: in float32 they take several times what they become.
MAX_QUANTISED_CPU, MAX_QUANTISED = 2**22, 2**25


@dataclass(frozen=True)
class Quantised:
    """Vectors `[P, G, D]` in `P` groups of `G`, in `bits` each number: `code * scale + zero`.

    With `span` 0 (keys) every group has a scale per channel, `[P, 1, D]`. Otherwise (values) every vector has one per
    `span` channels, `[P, G, D / span]`. A byte holds the codes of vectors that lie `G * bits / 8` apart, the first in
    its lowest bits. Rounding errs by half a step at most, and by what float16 loses of scale and zero point. With 16
    bits the codes are the vectors themselves, and there are no scales.
    """

    codes: Tensor  # uint8 [P, G * bits / 8, D]
    scale: Tensor
    zero: Tensor
    bits: int
    span: int

    @classmethod
    def of(cls, vectors: Tensor, bits: int, span: int) -> Quantised:
        """Quantise `[P, G, D]`. Raises `UserError` for numbers that float16 does not hold."""
        if bits == EXACT:
            none = vectors.new_empty(len(vectors), 0, 0, dtype=SCALES)
            return cls(vectors, none, none, bits, span)
        most = MAX_QUANTISED_CPU if vectors.device.type == "cpu" else MAX_QUANTISED
        n = max(1, most // max(1, vectors[:1].numel()))
        parts = []
        for some in vectors.split(n):
            low, high = _range(some.float(), span)
            parts.append(_quantise(some.float(), *_step(low, high, bits), bits, span))
        return cls.concatenate(parts)

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.codes, self.scale, self.zero

    @property
    def per_byte(self) -> int:
        """Numbers in one of the codes' elements."""
        return 1 if self.bits == EXACT else 8 // self.bits

    @property
    def group_size(self) -> int:
        """Vectors of a group."""
        return self.codes.shape[1] * self.per_byte

    @property
    def group_bytes(self) -> int:
        """Bytes of one group: codes, scales and zero points."""
        return sum(tensor.shape[1] * tensor.shape[2] * tensor.element_size() for tensor in self.tensors)

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, groups: slice) -> Quantised:
        """View some groups."""
        return self._with(tensor[groups] for tensor in self.tensors)

    def split(self, n: int) -> Iterator[Quantised]:
        """View `n` groups at a time."""
        return (self._with(tensors) for tensors in zip(*(tensor.split(n) for tensor in self.tensors), strict=True))

    def numbers(self, n: int, dtype: torch.dtype) -> Iterator[Tensor]:
        """Yield the codes `[n, G, D]` of `n` groups at a time, not scaled, each in place of the last."""
        codes = None
        for packed in self.codes.split(n):
            if codes is None or len(packed) != len(codes):
                codes = packed.new_empty(len(packed), self.group_size, packed.shape[-1])
                parts = codes.unflatten(1, (self.per_byte, -1)).unbind(1)
                buffer = torch.empty_like(codes, dtype=dtype)
            yield buffer.copy_(packed if self.bits == 8 else _unpack(packed, self.bits, codes, parts))

    def dequantise(self) -> Tensor:
        """The vectors `[P, G, D]`, in float32; with 16 bits as they are stored."""
        if self.bits == EXACT:
            return self.codes
        numbers = next(self.numbers(max(1, len(self)), torch.float32))
        scale, zero = self.scale.float(), self.zero.float()
        if not self.span:
            return torch.addcmul(zero, numbers, scale, out=numbers)
        numbers.unflatten(-1, (-1, self.span)).mul_(scale[..., None]).add_(zero[..., None])
        return numbers

    def _with(self, tensors: Iterable[Tensor]) -> Quantised:
        codes, scale, zero = tensors
        return Quantised(codes, scale, zero, self.bits, self.span)

    def take(self, groups: Tensor) -> Quantised:
        """Copy these groups, in this order."""
        return self._with(tensor.index_select(0, groups) for tensor in self.tensors)

    @classmethod
    def concatenate(cls, several: Sequence[Quantised]) -> Quantised:
        return several[0]._with(torch.cat(tensors) for tensors in zip(*(one.tensors for one in several), strict=True))

    def write(self, groups: Tensor, nth: Tensor, vectors: Tensor) -> Quantised:
        """Overwrite vectors `nth` `[M]` of groups `[M]` with `[M, D]`, in place where that can be.

        Others stay, except that a key beyond its group's range widens it, so that the group is rounded once more.
        """
        written = self._with(map(writable, self.tensors))
        if self.bits == EXACT:
            written.codes[groups, nth] = vectors
            return written
        touched, index = groups.unique(return_inverse=True)
        own = self.take(touched)
        numbers, vectors = own.dequantise(), vectors.float()
        numbers[index, nth] = vectors
        scale, zero = own.scale, own.zero
        if self.span:
            alone = _step(*_range(vectors[:, None], self.span), self.bits)  # M groups of one vector
            scale[index, nth], zero[index, nth] = (tensor[:, 0] for tensor in alone)
        else:
            low, high = _range(numbers, 0)
            old_low = zero.float()
            old_high = old_low + scale.float() * (2**self.bits - 1)
            fits = (low >= old_low) & (high <= old_high)
            wider = _step(torch.minimum(low, old_low), torch.maximum(high, old_high), self.bits)
            scale, zero = torch.where(fits, scale, wider[0]), torch.where(fits, zero, wider[1])
        for tensor, new in zip(
            written.tensors, _quantise(numbers, scale, zero, self.bits, self.span).tensors, strict=True
        ):
            tensor[touched] = new
        return written


def _range(vectors: Tensor, span: int) -> tuple[Tensor, Tensor]:
    """Least and greatest of `[P, G, D]`: over the entries `[P, 1, D]`, or over `span` channels `[P, G, D / span]`."""
    low, high = vectors.unflatten(-1, (-1, span)).aminmax(dim=-1) if span else vectors.aminmax(dim=1, keepdim=True)
    return low, high


def _step(low: Tensor, high: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Scale and zero point, as they are stored, of numbers between `low` and `high`."""
    zero = low.to(SCALES)
    return ((high - zero) / (2**bits - 1)).clamp_(min=SMALLEST).to(SCALES), zero


def _quantise(vectors: Tensor, scale: Tensor, zero: Tensor, bits: int, span: int) -> Quantised:
    """Round `[P, G, D]` in float32 to the steps given. Raises `UserError` where these are not finite."""
    if not bool(torch.isfinite(scale).all() & torch.isfinite(zero).all()):
        raise UserError(
            "keys or values are NaN or beyond 65,504, the range of their scales; keep them as they are with bits=16"
        )
    numbers = vectors.unflatten(-1, (-1, span)) - zero[..., None] if span else vectors - zero
    codes = numbers.div_(scale[..., None] if span else scale).round_().clamp_(0, 2**bits - 1).to(torch.uint8)
    return Quantised(_pack(codes.view(vectors.shape), bits), scale, zero, bits, span)


def _pack(codes: Tensor, bits: int) -> Tensor:
    """Pack codes `[P, G, D]` into bytes `[P, G * bits / 8, D]`."""
    first, *others = codes.chunk(8 // bits, 1)
    packed = first.clone()
    for nth, part in enumerate(others, 1):
        packed |= part << (nth * bits)
    return packed


def _unpack(packed: Tensor, bits: int, codes: Tensor, parts: Sequence[Tensor]) -> Tensor:
    """Undo `_pack`: write codes `[P, G, D]` in a byte each, of which `parts` `[P, G * bits / 8, D]` are views."""
    *lower, highest = parts
    torch.bitwise_right_shift(packed, 8 - bits, out=highest)
    for nth, part in enumerate(lower):
        shifted = torch.bitwise_right_shift(packed, nth * bits, out=part) if nth else packed
        torch.bitwise_and(shifted, 2**bits - 1, out=part)
    return codes
