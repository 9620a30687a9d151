"""The uniform allocation."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from baklava.allocation import Baklava, Uniform
from baklava.allocation.base import budgets_of
from baklava.errors import UserError
from baklava.experiment.components import AllocatorConfig


@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.999])
def test_every_cache_keeps_what_the_ratio_leaves(ratio: float) -> None:
    shares = Uniform(name="u").shares(SimpleNamespace(n_layers=3, n_kv_heads=2), ratio)
    assert shares.tolist() == [[1 - ratio] * 2] * 3


def test_has_nothing_to_search() -> None:
    assert not Uniform(name="u").searches


@pytest.mark.parametrize(
    ("bits", "ratio", "share"), [(16, 0.5, 0.5), (4, 0.5, 1.0), (4, 0.75, 0.8), (2, 0.875, 2 / 3), ((4, 2), 0.75, 1.0)]
)
def test_fewer_bits_leave_room_for_more_entries(bits: int | tuple[int, int], ratio: float, share: float) -> None:
    """At 4 bits an entry takes 5/16 of its bytes, scales among them; at 2 bits 3/16."""
    profile: Any = SimpleNamespace(n_layers=3, n_kv_heads=2, model="m", meta={})
    budgets = budgets_of(Uniform(name="u", bits=bits), profile, ratio)
    assert budgets.shares == pytest.approx(np.full((3, 2), share))
    assert budgets.ratio == ratio
    assert budgets.parameters == ({} if bits == 16 else {"bits": bits})


@pytest.mark.parametrize("bits", [3, (4, 3), (4, 4, 4)])
def test_other_bits_are_refused(bits: Any) -> None:
    with pytest.raises(ValidationError, match="bits"):
        AllocatorConfig(name="u", family="uniform", bits=bits)


@pytest.mark.parametrize("family", [Uniform, Baklava])
@pytest.mark.parametrize(("key", "value"), [("page", 16), ("granularity", "layer"), ("granularity", "group:2")])
def test_bits_and_pages_are_refused_before_any_work(family: Any, key: str, value: Any) -> None:
    with pytest.raises(
        UserError, match=f"^allocator u: {key}: {value} does not go with bits: 4,.*leave one of them out$"
    ):
        family(name="u", bits=4, **{key: value})
    assert family(name="u", bits=16, **{key: value}).parameters()[key] == value


def test_searches_that_know_no_bits_say_so() -> None:
    with pytest.raises(UserError, match="allocator b: bits: its search knows 16 alone"):
        Baklava(name="b", search="mapping", bits=4).fit(SimpleNamespace())  # type: ignore[arg-type]
    with pytest.raises(UserError, match="widths are for search: growth"):
        Baklava(name="b", search="none", widths=(4, 2))
