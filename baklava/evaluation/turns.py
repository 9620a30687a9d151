"""The protocol `turns`: questions about one context come one after the other, and earlier ones stay in the cache.

Each is followed by its reference answer, not by the model's: so every cell reads the same, a wrong answer does not
spoil later turns, and a job that was stopped continues in the midst of a conversation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from baklava.errors import DataError, UserError
from baklava.tasks import Sample


class Conversations:
    """Finds the samples before a sample that ask about the same context; `make` makes the sample with an index."""

    def __init__(self, make: Callable[[int], Sample]):
        self._make = make
        self._latest: list[Sample] = []  # the conversation of the latest sample, which ends with it

    def earlier(self, sample: Sample) -> Sequence[Sample]:
        """The turns before a sample, in order. A sample that cannot be made ends a conversation."""
        if not (self._latest and self._latest[-1].index == sample.index - 1):
            self._latest = self._read_back(sample)
        elif self._latest[-1].context != sample.context:
            self._latest = []
        earlier = tuple(self._latest)
        self._latest.append(sample)
        return earlier

    def _read_back(self, sample: Sample) -> list[Sample]:
        """The same for a sample in whose midst a shard begins."""
        turns: list[Sample] = []
        for index in range(sample.index - 1, -1, -1):
            try:
                before = self._make(index)
            except DataError:
                raise
            except UserError:
                break
            if before.context != sample.context:
                break
            turns.insert(0, before)
        return turns


def next_question(sample: Sample) -> str:
    """The question of a later turn without a chat template: it is as far from the answer before as from the context."""
    context = sample.context
    return (context[len(context.rstrip()) :] or "\n") + sample.question
