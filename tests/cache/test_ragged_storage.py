"""Ragged storage: every entry in one place, none too many, rearranged without loss."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from baklava.cache.ragged_layout import BLOCK_SIZES, RaggedLayout, slots_of
from baklava.cache.ragged_storage import RaggedEntries

COUNTS = st.lists(st.one_of(st.integers(0, 70), st.sampled_from([63, 64, 511, 512, 576, 1100])), min_size=1, max_size=6)


def layout_of(counts: list[int], cut: int = 0) -> RaggedLayout:
    """The layout of one storage, or of two that were joined."""
    parts = [counts[:cut], counts[cut:]] if 0 < cut < len(counts) else [counts]
    return RaggedLayout.concatenate([RaggedLayout.of(torch.tensor(part), torch.device("cpu")) for part in parts])


def entries_of(storage: RaggedEntries, cache: int) -> Tensor:
    """Keys of one KV cache, slot by slot."""
    slots = torch.arange(int(storage.layout.counts[cache]))
    return storage.keys[storage.layout.positions(torch.full_like(slots, cache), slots)]


def gathered(counts: list[int]) -> tuple[RaggedEntries, Tensor, Tensor]:
    """Entries of one context row with a KV head per count, the keys `[1, H, T, D]`, and what is kept `[H, T]`."""
    length = max(*counts, 1) + 3
    keys = torch.randn(1, len(counts), length, 2, generator=torch.Generator().manual_seed(sum(counts)))
    kept = torch.zeros(len(counts), length, dtype=torch.bool)
    for cache, n in enumerate(counts):
        kept[cache, torch.randperm(length, generator=torch.Generator().manual_seed(cache))[:n]] = True
    return RaggedEntries.gather(keys, -keys, torch.tensor([0]), kept), keys, kept


@settings(max_examples=60)
@given(COUNTS, st.integers(0, 5))
def test_every_slot_has_a_place_of_its_own(counts: list[int], cut: int) -> None:
    layout = layout_of(counts, cut)
    positions = layout.positions(*slots_of(layout.counts))
    assert sorted(positions.tolist()) == list(range(sum(counts)))
    assert layout.n_entries == sum(counts)


@settings(max_examples=60)
@given(COUNTS, st.integers(0, 5))
def test_blocks_and_remainder_hold_every_entry_once_under_its_owner(counts: list[int], cut: int) -> None:
    layout = layout_of(counts, cut)
    owner = torch.full((sum(counts),), -1)
    owner[layout.positions(*slots_of(layout.counts))] = slots_of(layout.counts)[0]
    n_seen = torch.zeros(sum(counts), dtype=torch.int64)
    for blocks in layout.blocks():
        index = torch.arange(blocks.start, blocks.start + blocks.length * len(blocks.owners)).view(-1, blocks.length)
        assert (owner[index] == blocks.owners[:, None]).all()
        n_seen[index] += 1
    if layout.remainder is not None:
        visible = ~layout.remainder.hidden[:, 0]
        assert layout.remainder.index.shape[1] < BLOCK_SIZES[-1]
        assert (owner[layout.remainder.index] == layout.remainder.owners[:, None])[visible].all()
        n_seen[layout.remainder.index[visible]] += 1
    assert (n_seen == 1).all()


@settings(max_examples=60)
@given(COUNTS)
def test_gathers_exactly_what_is_kept_in_the_order_of_the_text(counts: list[int]) -> None:
    storage, keys, kept = gathered(counts)
    assert storage.keys.shape == (sum(counts), 2)
    assert storage.keys.untyped_storage().nbytes() == sum(counts) * 2 * 4
    assert (storage.values == -storage.keys).all()
    for cache in range(len(counts)):
        assert (entries_of(storage, cache) == keys[0, cache, kept[cache]]).all()


@settings(max_examples=40)
@given(COUNTS, st.data())
def test_selected_caches_keep_their_entries(counts: list[int], data: st.DataObject) -> None:
    storage, _, _ = gathered(counts)
    chosen = data.draw(st.lists(st.integers(0, len(counts) - 1), min_size=1, max_size=8))
    selected = storage.select(torch.tensor(chosen))
    assert selected.layout.n_entries == sum(counts[cache] for cache in chosen)
    for new, old in enumerate(chosen):
        assert (entries_of(selected, new) == entries_of(storage, old)).all()


@settings(max_examples=40)
@given(COUNTS, COUNTS)
def test_joined_caches_keep_their_entries(counts: list[int], others: list[int]) -> None:
    parts = [gathered(counts)[0], gathered(others)[0]]
    joined = RaggedEntries.concatenate(parts)
    assert joined.layout.n_entries == sum(counts) + sum(others)
    for cache in range(len(counts)):
        assert (entries_of(joined, cache) == entries_of(parts[0], cache)).all()
    for cache in range(len(others)):
        assert (entries_of(joined, len(counts) + cache) == entries_of(parts[1], cache)).all()


def test_writing_changes_one_slot_of_one_cache() -> None:
    storage, _, _ = gathered([70, 600, 3])
    before = [entries_of(storage, cache).clone() for cache in range(3)]
    storage.write(torch.tensor([1]), torch.tensor([513]), torch.tensor([[7.0, 8.0]]), torch.tensor([[9.0, 9.0]]))
    before[1][513] = torch.tensor([7.0, 8.0])
    for cache in range(3):
        assert (entries_of(storage, cache) == before[cache]).all()
    assert (storage.values == 9).sum() == 2
