"""Cosine distances: the same in blocks of any size, and in half precision without rounding errors."""

from __future__ import annotations

import pytest
import torch

from baklava.cache.attention.backend import HALVES
from baklava.importance.base import cosine_distance, cosine_distance_to_sum


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("length", [1.0, 1e-3])
def test_what_is_added_to_a_residual_stream_is_not_rounded_away(length: float, dtype: torch.dtype) -> None:
    random = torch.Generator().manual_seed(0)
    before, added = (torch.randn(2, 50, 32, generator=random) * torch.tensor([1.0, length])[:, None, None]).to(dtype)
    expected = 1 - torch.cosine_similarity(before.double(), before.double() + added.double(), dim=-1).mean()
    torch.testing.assert_close(cosine_distance_to_sum(before, added).double(), expected, rtol=1e-4, atol=2e-7)


@pytest.mark.parametrize("block", [7, 64])
def test_in_float32_it_is_the_distance_to_the_sum_whatever_the_block(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("baklava.importance.base.BLOCK", block)
    before, added = torch.randn(2, 50, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(cosine_distance_to_sum(before, added), cosine_distance(before, before + added))


@pytest.mark.parametrize("block", [1, 7, 64])
def test_cosine_distance_does_not_depend_on_its_blocks(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(n, 40, 8, generator=generator) for n in (6, 2))
    expected = 1 - torch.cosine_similarity(query.unflatten(0, (2, 3)), key[:, None], dim=-1).mean(-1)
    monkeypatch.setattr("baklava.importance.base.BLOCK", block)
    torch.testing.assert_close(cosine_distance(query.unflatten(0, (2, 3)), key[:, None]), expected)
