"""A text grows until one more unit would be too long."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from baklava.tasks.text.fit_length import largest_fitting


@given(st.integers(0, 50), st.lists(st.integers(0, 40), min_size=1, max_size=300), st.integers(-5, 3000))
def test_is_the_largest_number_that_fits(bare: int, sizes: list[int], room: int) -> None:
    """Units of any sizes, in turn."""

    def size(n: int) -> int:
        full, rest = divmod(n, len(sizes) + 1)
        return bare + full * (sum(sizes) + 1) + sum(sizes[:rest])

    n = largest_fitting(lambda n: "x" * size(n), room=room, count_tokens=len)
    if size(0) > room:
        assert n == -1
    else:
        assert size(n) <= room < size(n + 1)


def test_takes_few_looks_at_a_long_text() -> None:
    rng = random.Random(0)
    words = ["w" * rng.randint(1, 12) for _ in range(200_000)]
    looks = []

    def build(n: int) -> str:
        looks.append(n)
        return " ".join(words[:n])

    n = largest_fitting(build, room=500_000, count_tokens=len)
    assert len(" ".join(words[:n])) <= 500_000 < len(" ".join(words[: n + 1]))
    assert len(looks) < 25
