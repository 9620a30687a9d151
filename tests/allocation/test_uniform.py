"""The uniform allocation."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from baklava.allocation import Uniform


@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.999])
def test_every_cache_keeps_what_the_ratio_leaves(ratio: float) -> None:
    shares = Uniform(name="u").shares(SimpleNamespace(n_layers=3, n_kv_heads=2), ratio)
    assert shares.tolist() == [[1 - ratio] * 2] * 3


def test_has_nothing_to_search() -> None:
    assert not Uniform(name="u").searches
