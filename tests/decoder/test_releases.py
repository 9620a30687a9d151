"""Both ways in which releases of transformers call caches and masks, whichever is installed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from baklava.cache.attention.dense import baklava_mask
from baklava.decoder import releases
from baklava.errors import UserError


@pytest.mark.parametrize("padding", [0, 3])
@pytest.mark.parametrize("n_new", [1, 4])
def test_positions_of_queries_give_the_mask_of_their_number(n_new: int, padding: int) -> None:
    seen = 6
    shown = torch.ones(2, seen + n_new, dtype=torch.bool)
    shown[0, :padding] = False
    given: dict[str, Any] = {"batch_size": 2, "kv_length": seen + n_new, "attention_mask": shown}
    by_number = baklava_mask(q_length=n_new, q_offset=seen, device="cpu", **given)
    by_position = baklava_mask(cache_position=torch.arange(seen, seen + n_new), **given)
    if not padding:
        assert by_number is None and by_position is None
        return
    visible = torch.ones(n_new, seen + n_new, dtype=torch.bool).tril(seen)
    expected = torch.stack([visible & shown[0], visible])[:, None]
    assert torch.equal(by_number, expected) and torch.equal(by_position, expected)


def test_number_of_queries() -> None:
    assert releases.count_queries(3) == releases.count_queries(torch.arange(5, 8)) == 3


@pytest.mark.parametrize(
    ("to_length", "removed"),
    [(True, [-3, 0, -3, 0]), (False, [-3, 0, 7, 12])],
    ids=["remaining length", "removed tokens"],
)
def test_argument_of_crop(to_length: bool, removed: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Positive numbers are a length to older releases, and refused by the cache with later ones."""
    monkeypatch.setattr(releases, "CROPS_TO_LENGTH", to_length)
    assert [releases.read_crop(crop, seen=10) for crop in (-3, 0, 7, 12)] == removed


def test_chunks_that_a_release_reads_wrongly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(releases, "TAKES_NEW_TOKENS_ONLY", True)
    monkeypatch.setattr(releases, "CHUNKS_NEW_TOKENS", False)
    releases.check_chunks(0)
    with pytest.raises(UserError, match="reads the whole prompt again"):
        releases.check_chunks(5)
    monkeypatch.setattr(releases, "TAKES_NEW_TOKENS_ONLY", False)
    with pytest.raises(UserError, match="counts the positions after the prompt wrongly"):
        releases.check_chunks(0)
