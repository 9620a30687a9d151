"""How much a search may read: `search.max_prefills`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from baklava.calibration.prompts import Prompt

GRADIENT_ROWS = 3  # what a backward pass over a continuation counts as, beside the forward pass in it


@dataclass
class Allowance:
    """Counts what a search reads, in prefills of its prompts, by the lengths of texts: the same on every machine."""

    limit: float | None = None
    spent: float = 0.0
    capped: bool = False  # whether a search was told to stop

    def spend(self, prompts: Sequence[Prompt], rows: int, *, of: int) -> None:
        """Count one reading of these prompts, of `of` in all, with the continuations of so many rows."""
        for prompt in prompts:
            continuation = len(prompt.question) + len(prompt.answer)
            self.spent += (1.0 + rows * continuation / max(1, len(prompt.context))) / of

    def is_left(self) -> bool:
        """Whether a search may go on."""
        if self.limit is None or self.spent < self.limit:
            return True
        self.capped = True
        return False
