"""Storage cut into stretches for programs that run side by side."""

from __future__ import annotations

from itertools import pairwise

import torch
from hypothesis import given
from hypothesis import strategies as st

from baklava.cache.ragged_layout import BLOCK_SIZES, RaggedLayout, slots_of

counts_of_caches = st.lists(st.one_of(st.just(0), st.integers(0, 100), st.integers(0, 5000)), max_size=20)


def layout(counts: list[int]) -> RaggedLayout:
    return RaggedLayout.of(torch.tensor(counts, dtype=torch.int64), torch.device("cpu"))


@given(counts=counts_of_caches, max_length=st.sampled_from([16, 64, 100, 512, 1024]))
def test_every_entry_is_in_one_stretch_of_its_cache(counts: list[int], max_length: int) -> None:
    storage = layout(counts)
    owner = torch.full((storage.n_entries,), -1)
    for start, length, cache, _ in storage.work_items(max_length).table.tolist():
        assert 0 < length <= max_length
        assert (owner[start : start + length] == -1).all()
        owner[start : start + length] = cache
    caches, slots = slots_of(storage.counts)
    assert torch.equal(owner[storage.positions(caches, slots)], caches)
    assert (owner >= 0).all()


@given(counts=counts_of_caches, max_length=st.sampled_from([16, 64, 100, 512, 1024]))
def test_results_of_a_cache_lie_side_by_side(counts: list[int], max_length: int) -> None:
    items = layout(counts).work_items(max_length)
    results: list[list[int]] = [[] for _ in counts]
    for _, _, cache, result in items.table.tolist():
        results[cache].append(result)
    bounds = items.bounds.tolist()
    assert [sorted(indices) for indices in results] == [list(range(*pair)) for pair in pairwise(bounds)]


@given(counts=counts_of_caches, max_length=st.sampled_from([64, 512, 1024]))
def test_few_stretches_are_short(counts: list[int], max_length: int) -> None:
    """A cache lies in three stretches at most, and only the last part of each is shorter than a program takes."""
    short = torch.zeros(len(counts), dtype=torch.int64)
    for _, length, cache, _ in layout(counts).work_items(max_length).table.tolist():
        short[cache] += length < max_length
    assert (short <= len(BLOCK_SIZES) + 1).all()


@given(counts=counts_of_caches)
def test_long_stretches_come_first(counts: list[int]) -> None:
    """So that at the end only short ones are under way."""
    lengths = layout(counts).work_items(64).table[:, 1]
    assert torch.equal(lengths, torch.cat([lengths[lengths == 64], lengths[lengths < 64]]))


def test_a_layout_is_cut_once() -> None:
    storage = layout([700, 3])
    assert storage.work_items(64) is storage.work_items(64)
    assert len(storage.work_items(512)) < len(storage.work_items(64))
