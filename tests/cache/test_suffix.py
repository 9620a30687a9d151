"""Rows of different length share one storage; each keeps its own tokens."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from baklava.cache.suffix import GROWTH, Suffix
from baklava.errors import UserError

Rows = list[list[float]]  # the tokens of each row


def tokens(rows: Rows) -> Tensor:
    return torch.tensor(rows)[:, None, :, None]  # [B, 1, Q, 1]


def made(rows: Rows) -> Suffix:
    empty = torch.empty(len(rows), 1, 0, 1)
    suffix = Suffix(empty, empty)
    suffix.append(tokens(rows), -tokens(rows))
    return suffix


def held(suffix: Suffix) -> Rows:
    """The tokens that the last query of each row sees."""
    mask = suffix.hide_padding(None, 1)
    shown = torch.ones(suffix.n_rows, suffix.length, dtype=torch.bool) if mask is None else mask[:, 0, 0]
    assert torch.equal(suffix.keys, -suffix.values)
    assert torch.isfinite(suffix.keys).all()
    return [row[visible].tolist() for row, visible in zip(suffix.keys[:, 0, :, 0], shown, strict=True)]


lengths = st.sampled_from([1, 2, 5, GROWTH - 1, GROWTH + 9])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 3), lengths, st.randoms(use_true_random=False)), min_size=1, max_size=5))
def test_rows_keep_their_tokens_as_others_come_and_go(steps: list[tuple[int, int, object]]) -> None:
    expected: Rows = [[float(i) for i in range(1, 4)]]
    suffix = made(expected)
    for n_rows, length, random in steps:
        new = [[float(100 * row + i) for i in range(1, length + 1)] for row in range(n_rows)]
        suffix.append_rows(made(new))
        expected = [*expected, *new]
        assert held(suffix) == expected
        more = [[1000.0 + row] for row in range(len(expected))]
        suffix.append(tokens(more), -tokens(more))
        expected = [row + token for row, token in zip(expected, more, strict=True)]
        rows = random.choices(range(len(expected)), k=random.randint(1, len(expected)))  # type: ignore[attr-defined]
        suffix.select_rows(torch.tensor(rows))
        expected = [expected[row] for row in rows]
        assert held(suffix) == expected
        assert suffix.length == max(map(len, expected))


def test_a_query_sees_what_is_before_it() -> None:
    suffix = made([[1.0, 2.0, 3.0]])
    assert suffix.hide_padding(None, 2) is None
    suffix.append_rows(made([[4.0, 5.0]]))
    mask = suffix.hide_padding(None, 2)
    assert mask is not None
    assert mask[:, 0].tolist() == [[[True, True, False], [True] * 3], [[False, True, False], [False, True, True]]]
    given_mask = torch.tensor([[[[False, True, True]]], [[[True, True, False]]]])
    masked = suffix.hide_padding(given_mask, 1)
    assert masked is not None
    assert masked[:, 0, 0].tolist() == [[False, True, True], [False, True, False]]


def test_no_row_forgets_more_than_it_has() -> None:
    suffix = made([[1.0, 2.0, 3.0]])
    suffix.append_rows(made([[4.0]]))
    with pytest.raises(UserError, match="cannot crop 2 tokens: only 1 came after the compressed context"):
        suffix.crop(2)
    suffix.crop(1)
    assert held(suffix) == [[1.0, 2.0], []]
