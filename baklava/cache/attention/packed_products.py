"""Products with packed keys and values, of which only the codes are expanded, some at a time.

Scales and zero points belong to groups of keys or values, so that they cost less on the other side of the product: a
query is scaled once for a group of keys, a weight once for a group of an entry's channels. What zero points add is a
product with as many numbers as there are groups.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from baklava.budgets.bits import EXACT
from baklava.cache.attention.precision import MAX_CONVERTED, MAX_CONVERTED_CPU, multiply
from baklava.cache.quantised import Quantised

# With more rows than this there are fewer entries to scale than rows. (Single groups are scaled too: they are few.)
MAX_ROWS = 32


def scores(query: Tensor, keys: Quantised) -> Tensor:
    """Scores `[P, R, n]` of queries `[P, R, D]`, in float32 at least, with `n` keys each, in groups `[P * n / G]`."""
    n_owners, n_rows, dim = query.shape
    if keys.bits == EXACT:
        return multiply(query, keys.codes.view(n_owners, -1, dim).transpose(-1, -2))
    n = _owners_at_a_time(keys, n_owners)
    n_groups = len(keys) // n_owners
    if n_rows > MAX_ROWS or n_groups == 1:
        pairs = zip(query.split(n), keys.split(n * n_groups), strict=True)
        return torch.cat([torch.bmm(q, _vectors(some, q).transpose(-1, -2)) for q, some in pairs])
    scale, zero = (tensor.to(query.dtype).view(n_owners, -1, dim) for tensor in (keys.scale, keys.zero))
    of_zero = torch.bmm(zero, query.transpose(-1, -2)).view(-1, n_rows, 1)  # [P * n / G, R, 1]
    products = query.new_empty(len(keys), n_rows, keys.group_size)  # [P * n / G, R, G]
    several = (query[:, None].split(n), scale[:, :, None].split(n))
    blocks = zip(*several, *(tensor.split(n * n_groups) for tensor in (of_zero, products)), strict=True)
    for numbers, (q, s, z, out) in zip(keys.numbers(n * n_groups, query.dtype), blocks, strict=True):
        torch.baddbmm(z, (q * s).flatten(0, 1), numbers.transpose(-1, -2), out=out)
    return products.unflatten(0, (n_owners, -1)).transpose(1, 2).flatten(2)


def weigh(weights: Tensor, values: Quantised) -> Tensor:
    """Sums `[P, R, D]` of values in groups `[P * n / G]`, weighted with `[P, R, n]`, in float32 at least."""
    n_owners, n_rows, n_entries = weights.shape
    if values.bits == EXACT:
        return multiply(weights, values.codes.view(n_owners, n_entries, -1))
    n = _owners_at_a_time(values, n_owners)
    n_groups = len(values) // n_owners
    if n_rows > MAX_ROWS or n_groups == 1:
        pairs = zip(weights.split(n), values.split(n * n_groups), strict=True)
        return torch.cat([torch.bmm(w, _vectors(some, w)) for w, some in pairs])
    if n_rows % 4 == 3:  # MKL multiplies 4 rows in less time than 3
        weights = pad(weights, (0, 0, 0, 1))
    scale, zero = (
        tensor.view(n_owners, n_entries, -1).transpose(-1, -2).to(weights.dtype, memory_format=torch.contiguous_format)
        for tensor in (values.scale, values.zero)
    )  # [P, D / span, n]
    sums = weights.new_empty(scale.shape[1], n_owners, weights.shape[1], values.span)  # [D / span, P, R, span]
    blocks = zip(weights[:, None].split(n), scale[:, :, None].split(n), sums.split(n, 1), strict=True)
    for numbers, (w, s, out) in zip(values.numbers(n * n_groups, weights.dtype), blocks, strict=True):
        channels = numbers.view(len(w), n_entries, -1, values.span).unbind(2)
        for scaled, some, some_out in zip((w * s).unbind(1), channels, out, strict=True):
            torch.bmm(scaled, some, out=some_out)
    of_zero = torch.bmm(weights, zero.transpose(-1, -2))  # [P, R, D / span]
    return (sums.permute(1, 2, 0, 3) + of_zero[..., None]).flatten(-2)[:, :n_rows]


def _owners_at_a_time(stored: Quantised, n_owners: int) -> int:
    """How many owners' groups may be expanded at a time."""
    most = MAX_CONVERTED_CPU if stored.codes.device.type == "cpu" else MAX_CONVERTED
    return max(1, most // (len(stored) // n_owners * stored.group_size * stored.codes.shape[-1]))


def _vectors(stored: Quantised, rows: Tensor) -> Tensor:
    """The vectors `[p, n, D]` that belong to rows `[p, R, K]`."""
    return stored.dequantise().to(rows.dtype).view(len(rows), -1, stored.codes.shape[-1])
