"""Storage cut into stretches for programs that run side by side."""

from __future__ import annotations

from itertools import pairwise

import torch
from hypothesis import given
from hypothesis import strategies as st

from baklava.cache.ragged import BLOCK_SIZES, RaggedLayout, slots_of

counts_of_caches = st.lists(st.one_of(st.just(0), st.integers(0, 100), st.integers(0, 5000)), max_size=20)


def layout(counts: list[int]) -> RaggedLayout:
    return RaggedLayout.of(torch.tensor(counts, dtype=torch.int64), torch.device("cpu"))


@given(counts=counts_of_caches, most=st.sampled_from([16, 64, 100, 512, 1024]))
def test_every_entry_is_in_one_stretch_of_its_cache(counts: list[int], most: int) -> None:
    one = layout(counts)
    owner = torch.full((one.n_entries,), -1)
    for start, length, cache, _ in one.work_items(most).table.tolist():
        assert 0 < length <= most
        assert (owner[start : start + length] == -1).all()
        owner[start : start + length] = cache
    caches, slots = slots_of(one.counts)
    assert torch.equal(owner[one.positions(caches, slots)], caches)
    assert (owner >= 0).all()


@given(counts=counts_of_caches, most=st.sampled_from([16, 64, 100, 512, 1024]))
def test_results_of_a_cache_lie_side_by_side(counts: list[int], most: int) -> None:
    items = layout(counts).work_items(most)
    places: list[list[int]] = [[] for _ in counts]
    for _, _, cache, place in items.table.tolist():
        places[cache].append(place)
    bounds = items.bounds.tolist()
    assert [sorted(some) for some in places] == [list(range(*pair)) for pair in pairwise(bounds)]


@given(counts=counts_of_caches, most=st.sampled_from([64, 512, 1024]))
def test_few_stretches_are_short(counts: list[int], most: int) -> None:
    """A cache lies in three stretches at most, and only the last part of each is shorter than a program takes."""
    short = torch.zeros(len(counts), dtype=torch.int64)
    for _, length, cache, _ in layout(counts).work_items(most).table.tolist():
        short[cache] += length < most
    assert (short <= len(BLOCK_SIZES) + 1).all()


@given(counts=counts_of_caches)
def test_long_stretches_come_first(counts: list[int]) -> None:
    """So that at the end only short ones are under way."""
    lengths = layout(counts).work_items(64).table[:, 1]
    assert torch.equal(lengths, torch.cat([lengths[lengths == 64], lengths[lengths < 64]]))


def test_a_layout_is_cut_once() -> None:
    one = layout([700, 3])
    assert one.work_items(64) is one.work_items(64)
    assert len(one.work_items(512)) < len(one.work_items(64))
