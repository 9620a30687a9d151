"""Needle grid: one needle at fixed depths of texts of fixed lengths, for a heat map of where it is found.

After G. Kamradt's "Needle In A Haystack" pressure test (2023), with RULER's needle, question and metric.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

from pydantic import Field

from baklava.errors import UserError
from baklava.tasks.base import CountTokens, Sample
from baklava.tasks.ruler.niah import NeedleInHaystack

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


@dataclass(frozen=True, kw_only=True)
class NeedleGrid(NeedleInHaystack):
    """One needle per sample; sample `index` belongs to cell `index` modulo the number of cells, depths first.

    A depth is the fraction of the haystack before the needle, a length a fraction of the requested length. Request a
    multiple of `n_cells` samples, so that every cell has the same number.
    """

    family: ClassVar[str] = "needle_grid"

    depths: Annotated[tuple[Fraction, ...], Field(min_length=1)] = (0.0, 0.25, 0.5, 0.75, 1.0)
    lengths: Annotated[tuple[Annotated[float, Field(gt=0.0, le=1.0)], ...], Field(min_length=1)] = (1.0,)

    def __post_init__(self) -> None:
        if self.n_keys * self.n_values != 1:
            raise UserError("n_keys and n_values: a needle grid has one needle; leave both at 1")
        super().__post_init__()

    @property
    def n_cells(self) -> int:
        return len(self.depths) * len(self.lengths)

    def cell(self, index: int) -> tuple[float, float]:
        """Depth, and fraction of the requested length, of a sample."""
        cell = index % self.n_cells
        return self.depths[cell % len(self.depths)], self.lengths[cell // len(self.depths)]

    def sample(self, *, split: str, seed: int, index: int, length: int, count_tokens: CountTokens) -> Sample:
        depth, fraction = self.cell(index)
        cell_length = round(fraction * length)
        sample = super().sample(split=split, seed=seed, index=index, length=cell_length, count_tokens=count_tokens)
        return replace(sample, group=f"length {cell_length}, depth {depth:g}")

    def positions(self, n_needles: int, n_pieces: int, *, rng: random.Random, split: str, index: int) -> list[int]:
        return [round(self.cell(index)[0] * n_pieces)] * n_needles
