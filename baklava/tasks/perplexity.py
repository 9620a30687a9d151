"""Continuation loss (perplexity): how well the model predicts a text after its compressed beginning."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from baklava.errors import LengthError, UserError
from baklava.tasks.base import Count, CountTokens, Sample, Task
from baklava.tasks.text.documents import BUILT_IN, Documents, check_source, cut_pieces, open_documents, split_tokens


class _Reader:
    """Reads pieces by number: it reads ahead to a later one, and starts again for an earlier one."""

    def __init__(self) -> None:
        self._key: object = None
        self._pieces: Iterator[str] = iter(())
        self.n_read = 0

    def piece(self, number: int, key: object, begin: Iterator[str]) -> str | None:
        """Piece `number` of those that `begin` yields, or None if there are too few. Equal keys mean equal pieces."""
        if key != self._key or number < self.n_read:
            self._key, self._pieces, self.n_read = key, begin, 0
        for piece in self._pieces:
            self.n_read += 1
            if self.n_read > number:
                return piece
        return None


@dataclass(frozen=True, kw_only=True)
class Continuation(Task):
    """Pieces of a text: the last `max_new_tokens` tokens are scored, not generated, and the others are the context.

    The model reads these tokens after the compressed context at their true positions, teacher-forced. The score is
    `exp(-loss)`, the geometric mean of the tokens' probabilities, which is 1 / perplexity and in [0, 1]; the loss is
    recorded beside it. `data` is a text or JSONL file, a folder of text files, or a path for `datasets.load_dataset`
    (then `data_name`, `data_split`, `data_revision`); `field` is the text of a row. Pieces of one split do not overlap;
    pieces of different splits may, and so may those of `calibration=text` from the same text: calibrate on another
    text.
    """

    family: ClassVar[str] = "continuation"
    by_loss: ClassVar[bool] = True

    data: str | None = None
    data_name: str | None = None
    data_split: str = "test"
    data_revision: str | None = None
    field: str = "text"
    max_new_tokens: Count = 128

    @property
    def _names(self) -> dict[str, str]:
        """What messages name: who asks for the text, and the setting that gives it."""
        return {"who": f"task {self.name}", "key": f"tasks.{self.name}.data"}

    def check(self) -> None:
        data = check_source(self, **self._names)
        if data in BUILT_IN and data not in self.name:
            raise UserError(
                f"task {self.name}: data: {data} is a text that comes with Python, so the name of the task must "
                f"contain {data!r}; choose the task continuation_{data}"
            )

    @cached_property
    def _documents(self) -> Documents:
        return open_documents(self, **self._names)

    @cached_property
    def _reader(self) -> _Reader:
        return _Reader()

    def sample(self, *, split: str, seed: int, index: int, length: int, count_tokens: CountTokens) -> Sample:
        if length < 2 * self.max_new_tokens:
            raise LengthError(
                f"task {self.name}: length {length} is too short: {self.max_new_tokens} tokens are scored, which "
                f"leaves less than half as context; ask for a length of at least {2 * self.max_new_tokens}"
            )
        rng = self.random_stream(split=split, seed=seed, index=0)  # draws the order of all pieces
        all_pieces = cut_pieces(self._documents, length=length, count_tokens=count_tokens, rng=rng)
        piece = self._reader.piece(index, (split, seed, length), all_pieces)
        if piece is None:
            raise UserError(
                f"task {self.name}: sample {index} asked for, but {self.data} has {self._reader.n_read} pieces of "
                f"{length} tokens; ask for at most {self._reader.n_read}, or give more text"
            )
        sizes = (length - self.max_new_tokens, self.max_new_tokens)
        special = count_tokens("")  # tokens that only stand before the context
        context, continuation = split_tokens(piece, sizes, (count_tokens, lambda text: count_tokens(text) - special))
        return Sample(
            index=index,
            context=context,
            question="",
            answer_prefix="",
            answers=(continuation,),
            max_new_tokens=self.max_new_tokens,
            chat="none",
        )

    def metric_name(self) -> str:
        raise UserError(f"task {self.name}: its score is a loss of the model itself; there are no predictions to score")

    def reference_answer(self, sample: Sample) -> str:
        return sample.answers[0]
