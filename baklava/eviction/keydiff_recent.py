"""KeyDiff (arXiv 2504.15364) with a part of the budget for the newest entries, and sinks as in StreamingLLM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from baklava.eviction.keydiff import KeyDiff


@dataclass(frozen=True, kw_only=True)
class KeyDiffRecent(KeyDiff):
    """Keeps the first `n_sink` entries, the newest for the fraction `recent` of the budget, and by KeyDiff's score.

    No publication has this mixture: KeyDiff finds what stands out and loses what has just been said, StreamingLLM the
    reverse. Here one budget pays for both.
    """

    family: ClassVar[str] = "keydiff_recent"

    n_sink: Annotated[int, Field(ge=0)] = 4
    recent: Annotated[float, Field(ge=0.0, le=1.0)] = 0.25

    def protected_first(self, budget: int) -> int:
        return self.n_sink

    def protected_last(self, budget: int) -> int:
        return int(self.recent * budget)
